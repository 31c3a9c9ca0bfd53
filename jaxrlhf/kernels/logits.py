"""Logits from hidden states and a head, and the way of a gradient back: the products that the hot path consists of."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxrlhf.types import Head

_LARGEST = 3e38


def logits_of(hidden: jax.Array, head: Head) -> jax.Array:
    """The logits of [..., D] hidden states: [..., V] float32, -inf at padded rows of the vocabulary."""
    logits = _capped(hidden, head, head.weight.astype(hidden.dtype), head.bias)
    if head.vocab_size is not None:
        real = (jnp.arange(logits.shape[-1]) < head.vocab_size).reshape((1,) * (hidden.ndim - 1) + (-1,))
        logits = jnp.where(real, logits, -jnp.inf)
    return logits


def tile_logits(
    hidden: jax.Array, head: Head, weight: jax.Array, inverse: jax.Array, first: jax.Array, columns: int
) -> jax.Array:
    """Logits [n, columns] of a tile, divided by the temperature, float32; padded words are not marked.

    Args:
        hidden: [n, D].
        head: where bias, scale and soft cap come from.
        weight: what `tile_weight` took.
        inverse: of the temperature, float32 scalar.
        first: the first of the head's rows in the tile.
        columns: of the tile.
    """
    bias = None if head.bias is None else jax.lax.dynamic_slice_in_dim(head.bias, first, columns)
    logits = _capped(hidden, head, weight, bias) * inverse
    # The choice changes nothing: what is not below is infinite, or NaN, of which infinity makes NaN again. Without it
    # compilers join this product and the subtraction of the maximum into one operation in some programs and not in
    # others, and a log-probability would differ between them in its last digit.
    return jnp.where(logits < _LARGEST, logits, jnp.inf)


def tile_weight(head: Head, first: jax.Array, columns: int, dtype: jnp.dtype) -> jax.Array:
    """The part of the head's weight that a tile of columns needs, in its own layout."""
    return jax.lax.dynamic_slice_in_dim(head.weight, first, columns, head.vocab_axis).astype(dtype)


def _capped(hidden: jax.Array, head: Head, weight: jax.Array, bias: jax.Array | None) -> jax.Array:
    """Logits [..., words] float32 by these words of the head: scale, bias and soft cap."""
    logits = head.scale * jnp.einsum(
        "...d,vd->...v" if head.layout == "vd" else "...d,dv->...v",
        hidden,
        weight,
        preferred_element_type=jnp.float32,
        precision=matmul_precision(hidden),
    )
    if bias is not None:
        logits = logits + bias.reshape((1,) * (hidden.ndim - 1) + (-1,)).astype(jnp.float32)
    return logits if head.softcap is None else head.softcap * jnp.tanh(logits / head.softcap)


def before_softcap(dz: jax.Array, z: jax.Array, head: Head, inverse: jax.Array, fresh: jax.Array) -> jax.Array:
    """Gradient by the raw logits, those before soft cap and temperature (`inverse`); 0 at columns that are not fresh.

    The mask comes last: a factor of a padded column may be NaN, and 0 * NaN is NaN.
    """
    if head.softcap is not None:
        dz = dz * (1.0 - jnp.square(z / (inverse * head.softcap)))
    return jnp.where(fresh, dz * inverse, 0.0)


def by_hidden(draw: jax.Array, weight: jax.Array, head: Head) -> jax.Array:
    """Gradient [n, D] float32 by hidden states, from that by the raw logits and the tile's part of the weight."""
    return _product((draw * head.scale).astype(weight.dtype), weight, 1, head.vocab_axis)


def by_weight(draw: jax.Array, hidden: jax.Array, head: Head) -> jax.Array:
    """Gradient float32 by the tile's part of the weight, in its layout."""
    slope = (draw * head.scale).astype(hidden.dtype)
    # Not an einsum, which may make the turned product and turn it.
    return _product(*((slope, hidden) if head.layout == "vd" else (hidden, slope)), 0, 0)


def _product(left: jax.Array, right: jax.Array, left_axis: int, right_axis: int) -> jax.Array:
    """The product of matrices over one axis of each, float32."""
    return jax.lax.dot_general(
        left,
        right,
        (((left_axis,), (right_axis,)), ((), ())),
        precision=matmul_precision(right),
        preferred_element_type=jnp.float32,
    )


def matmul_precision(operand: jax.Array) -> jax.lax.Precision | None:
    """Full precision for float32 operands, which accelerators would round to bfloat16 or TF32; else their default."""
    return jax.lax.Precision.HIGHEST if operand.dtype == jnp.float32 else None
