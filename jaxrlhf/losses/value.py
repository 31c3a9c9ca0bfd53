"""The critic's loss."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

from jaxrlhf.ops.masked import masked_mean
from jaxrlhf.ops.stats import Mean, mean_of


def ppo_value_loss(
    values: jax.Array,
    old_values: jax.Array,
    returns: jax.Array,
    mask: jax.Array,
    *,
    clip_eps: jax.Array | float,
    denom: jax.Array | float | None = None,
) -> tuple[jax.Array, dict[str, Mean]]:
    """Clipped value loss of PPO: half the token mean of max((V - R)^2, (clip(V, V_old -+ clip_eps) - R)^2).

    The form of the reference implementation (openai/baselines, ppo2), which the paper does not describe.

    Args:
        values: [B, T] float array, the critic's values.
        old_values: [B, T] float array, its values before the update; no gradient flows through it.
        returns: [B, T] float array, the targets; no gradient flows through it.
        mask: [B, T] bool array, True at response tokens.
        clip_eps: how far a value may move from its old one, positive; infinity switches clipping off.
        denom: number of tokens to divide by; None means those of `mask`.

    Returns:
        Scalar float32 loss, and metrics `loss/value_avg`, `val/clipfrac_avg` (share of tokens whose clipped error is
        the larger).
    """
    arrays = [values, old_values, returns, mask]
    chex.assert_rank(arrays, 2)
    chex.assert_equal_shape(arrays)
    old_values, returns = jax.lax.stop_gradient((old_values, returns))
    # Selected before the square, whose gradient at NaN is NaN even where the mask gives it a cotangent of 0.
    values = jnp.where(mask, values.astype(jnp.float32), 0.0)
    near = jnp.clip(values, old_values - clip_eps, old_values + clip_eps)
    plain, clipped = jnp.square(values - returns), jnp.square(near - returns)
    per_token = 0.5 * jnp.maximum(plain, clipped)
    metrics = {
        "loss/value_avg": mean_of(per_token, mask),
        "val/clipfrac_avg": mean_of(clipped > plain, mask),
    }
    return masked_mean(per_token, mask, denom), metrics
