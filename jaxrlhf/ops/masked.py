"""Reductions over the True entries of a mask, in float32, and whitening.

Padding is selected away, not multiplied by zero: 0 * NaN is NaN, and padding may hold anything.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator

import chex
import jax
import jax.numpy as jnp

_in_parts = contextvars.ContextVar("in_parts", default=False)


@contextlib.contextmanager
def in_parts() -> Iterator[None]:
    """Within, arrays are some of the tokens of a batch, in any order: what would need all of them is refused.

    `kernels.fused_token_loss` calls losses so. A mean of a part by its own count, or a sum of what is no row, would be
    wrong in silence.
    """
    token = _in_parts.set(True)
    try:
        yield
    finally:
        _in_parts.reset(token)


def masked_sum(values: jax.Array, mask: jax.Array, axis: int | None = None) -> jax.Array:
    """Sum of the values where the mask is True.

    Args:
        values: [...] array.
        mask: bool array of the same shape.
        axis: axis to sum over; None means all.
    """
    chex.assert_equal_shape([values, mask])
    chex.assert_type(mask, bool)
    if axis is not None and _in_parts.get():
        raise ValueError(
            "a sum for each row needs whole rows, and this loss sees some of the tokens at a time; give each token its "
            "weight instead, as `steps.grpo.token_weights` does"
        )
    return jnp.sum(jnp.where(mask, values.astype(jnp.float32), 0.0), axis=axis)


def masked_count(mask: jax.Array, denom: jax.Array | float | None = None) -> jax.Array:
    """The denominator of a masked mean: `denom` if given, else the number of True entries, at least 1.

    Steps pass the total of the whole batch as `denom`, so that micro-batches and devices add up to one mean.
    """
    if denom is None:
        if _in_parts.get():
            raise ValueError(
                "a mean needs the count of all tokens, and this loss sees some of them at a time; give denom, counted "
                "outside (of `grpo_loss`: average=functools.partial(masked_mean, denom=...))"
            )
        denom = jnp.sum(mask, dtype=jnp.float32)
    return jnp.maximum(jnp.asarray(denom, jnp.float32), 1.0)


def masked_mean(values: jax.Array, mask: jax.Array, denom: jax.Array | float | None = None) -> jax.Array:
    """Mean of the values where the mask is True; 0 where there is none.

    Args:
        values: [...] array.
        mask: bool array of the same shape.
        denom: divides the sum in place of the number of True entries.
    """
    return masked_sum(values, mask) / masked_count(mask, denom)


def whiten(values: jax.Array, mask: jax.Array, eps: float = 1e-8) -> jax.Array:
    """Shifts and scales to mean 0 and variance 1 over the True entries; 0 elsewhere.

    The variance is the unbiased one (divided by n - 1), as in TRL and verl; lm-human-preferences divides by n. Over an
    array sharded on a mesh the statistics are those of the whole array.

    Args:
        values: [...] float array.
        mask: bool array of the same shape.
        eps: added to the variance.
    """
    centred, scale, _ = _centred(values, mask, eps)
    return jnp.where(mask, centred * scale, 0.0)


def whiten_keep_mean(values: jax.Array, mask: jax.Array, eps: float = 1e-8) -> jax.Array:
    """Scales to variance 1 over the True entries around the mean they have; 0 elsewhere.

    This is what PPO implementations do to rewards, where a shift would change the task (a longer answer would collect
    it more often). Arguments as for `whiten`.
    """
    centred, scale, mean = _centred(values, mask, eps)
    return jnp.where(mask, centred * scale + mean, 0.0)


def whitening_scale(values: jax.Array, mask: jax.Array, eps: float = 1e-8) -> jax.Array:
    """The factor by which `whiten` and `whiten_keep_mean` scale; arguments as for `whiten`."""
    return _centred(values, mask, eps)[1]


def _centred(values: jax.Array, mask: jax.Array, eps: float) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The values less their mean, the factor that gives them variance 1, and their mean."""
    # Selected before the square: at NaN its gradient is NaN even for a cotangent of 0, and the mean spreads it.
    values = jnp.where(mask, values.astype(jnp.float32), 0.0)
    count = masked_count(mask)
    mean = masked_sum(values, mask) / count
    variance = masked_sum(jnp.square(values - mean), mask) / jnp.maximum(count - 1.0, 1.0)
    return values - mean, jax.lax.rsqrt(variance + eps), mean


def positions_of(segment_ids: jax.Array) -> jax.Array:
    """Position of each token in its row, from 0, where rows hold one sequence with padding on either side.

    Args:
        segment_ids: [B, T] int array, 0 at padding.

    Returns:
        [B, T] int32; padding on the left counts 0, on the right the last token's position.
    """
    return jnp.maximum(jnp.cumsum(segment_ids != 0, axis=1, dtype=jnp.int32) - 1, 0)
