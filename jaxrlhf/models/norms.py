"""Normalisation of the stream, of what is added to it, of queries and of keys."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxrlhf.models.config import ModelConfig


class RMSNorm(nn.Module):
    """Root mean square normalisation (Zhang & Sennrich 2019), computed in float32.

    Attributes:
        eps: added to the mean square.
        offset: added to the scale.
        dtype: of the result.
    """

    eps: float
    offset: float
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalises the last axis of [..., D]."""
        scale = self.param("scale", nn.initializers.constant(1.0 - self.offset), (x.shape[-1],), jnp.float32)
        wide = x.astype(jnp.float32)
        inverse = jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + self.eps)
        return (wide * inverse * _along(scale, x, self.offset)).astype(self.dtype)


class LayerNorm(nn.Module):
    """Layer normalisation (Ba et al. 2016), computed in float32.

    Attributes:
        eps: added to the variance.
        offset: added to the scale.
        dtype: of the result.
    """

    eps: float
    offset: float
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalises the last axis of [..., D]."""
        scale = self.param("scale", nn.initializers.constant(1.0 - self.offset), (x.shape[-1],), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],), jnp.float32)
        wide = x.astype(jnp.float32)
        centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
        inverse = jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + self.eps)
        return (centred * inverse * _along(scale, x, self.offset) + _along(bias, x, 0.0)).astype(self.dtype)


def make_norm(config: ModelConfig, dtype: Any, name: str | None = None) -> RMSNorm | LayerNorm:
    """The norm of a model's blocks and of its end."""
    kind = RMSNorm if config.norm == "rms" else LayerNorm
    return kind(config.norm_eps, config.norm_offset, dtype, name=name)


def _along(scale: jax.Array, x: jax.Array, offset: float) -> jax.Array:
    """A vector [D] plus an offset in float32, with the axes of x."""
    return scale.astype(jnp.float32).reshape((1,) * (x.ndim - 1) + scale.shape) + offset
