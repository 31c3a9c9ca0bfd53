"""The parts of a decoder block as Linen modules, named as in the published checkpoints."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxrlhf.models.attention import Mix, reads_cache
from jaxrlhf.models.cache import read_layer, write_layer
from jaxrlhf.models.config import ModelConfig
from jaxrlhf.models.rotary import rotate
from jaxrlhf.ops.project import project, project_gated
from jaxrlhf.types import KVCache

INIT_STD = 0.02
"""Standard deviation of fresh weights, as in the published configs (`initializer_range`)."""

Rotary = tuple[jax.Array, jax.Array]
"""Cosines and sines, both [B, T, 1, Dh / 2] float32."""


class RMSNorm(nn.Module):
    """Root mean square normalisation (Zhang & Sennrich 2019), computed in float32.

    Attributes:
        eps: added to the mean square.
        dtype: of the result.
    """

    eps: float
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalises the last axis of [B, T, D]."""
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.float32)
        wide = x.astype(jnp.float32)
        inverse = jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + self.eps)
        return (wide * inverse * scale[None, None, :].astype(jnp.float32)).astype(self.dtype)


class Attention(nn.Module):
    """Grouped-query attention (Ainslie et al. 2023) with rotary positions.

    Attributes:
        config: the model.
        dtype: of activations and products.
    """

    config: ModelConfig
    dtype: Any

    @nn.compact
    def __call__(
        self, x: jax.Array, rotary: Rotary, mix: Mix, cache: KVCache | None, layer: jax.Array | int
    ) -> tuple[jax.Array, KVCache | None]:
        """Mixes tokens.

        Args:
            x: [B, T, D].
            rotary: cosines and sines of the tokens' positions.
            mix: weighs the values; knows which token sees which.
            cache: where keys and values are written to and read from; None if the T tokens are all there is.
            layer: number of the layer in the cache.

        Returns:
            [B, T, D] array and the cache with the new keys and values.
        """
        config = self.config
        queries = rotate(self._heads(x, config.num_heads, "q_proj"), *rotary)  # [B, T, H, Dh]
        keys = rotate(self._heads(x, config.num_kv_heads, "k_proj"), *rotary)  # [B, T, KH, Dh]
        values = self._heads(x, config.num_kv_heads, "v_proj")
        if cache is not None:
            cache = write_layer(cache, layer, keys, values)
            if reads_cache(cache, x.shape[1]):
                keys, values = read_layer(cache, layer)  # [B, KH, S, Dh]
        mixed = mix(queries, keys, values)
        return _dense(x.shape[-1], "o_proj", self.dtype)(mixed.reshape(*x.shape[:2], -1)), cache

    def _heads(self, x: jax.Array, heads: int, name: str) -> jax.Array:
        projected = _dense(heads * self.config.head_dim, name, self.dtype)(x)
        return projected.reshape(*x.shape[:2], heads, self.config.head_dim)


class MLP(nn.Module):
    """Gated linear unit with SiLU (Shazeer 2020).

    Attributes:
        width: of the gate, F.
        dtype: of activations and products.
    """

    width: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, T, D] to [B, T, D], each token by itself."""
        gate, up = (_dense(self.width, name, self.dtype)(x) for name in ("gate_proj", "up_proj"))
        return DownProjection(x.shape[-1], self.dtype, name="down_proj")(gate, up)


class DownProjection(nn.Module):
    """The end of a gated MLP.

    Attributes:
        width: of the result, D.
        dtype: of activations and products.
    """

    width: int
    dtype: Any

    @nn.compact
    def __call__(self, gate: jax.Array, up: jax.Array) -> jax.Array:
        """Maps gate and up, both [B, T, F], to [B, T, D]."""
        shape = (gate.shape[-1], self.width)
        kernel = self.param("kernel", nn.initializers.normal(INIT_STD), shape, jnp.float32)
        return project_gated(gate, up, kernel.astype(self.dtype))


class Block(nn.Module):
    """One layer: attention and MLP, each on a normalised copy and added to the stream.

    Attributes:
        config: the model.
        dtype: of activations and products.
    """

    config: ModelConfig
    dtype: Any

    @nn.compact
    def __call__(
        self, x: jax.Array, rotary: Rotary, mix: Mix, cache: KVCache | None, layer: jax.Array | int
    ) -> tuple[jax.Array, KVCache | None]:
        """Runs the layer; arguments and results are those of `Attention`."""
        eps = self.config.rms_eps
        normed = RMSNorm(eps, self.dtype, name="input_layernorm")(x)
        mixed, cache = Attention(self.config, self.dtype, name="self_attn")(normed, rotary, mix, cache, layer)
        x = x + mixed
        normed = RMSNorm(eps, self.dtype, name="post_attention_layernorm")(x)
        return x + MLP(self.config.intermediate_size, self.dtype, name="mlp")(normed), cache


def _dense(width: int, name: str, dtype: Any) -> nn.Dense:
    return nn.Dense(
        width,
        use_bias=False,
        dtype=dtype,
        kernel_init=nn.initializers.normal(INIT_STD),
        dot_general=_last_with_first,
        name=name,
    )


def _last_with_first(x: jax.Array, kernel: jax.Array, axes: Any, precision: Any = None) -> jax.Array:
    """`project` in the form that Linen calls; a layer's axes are always these, and it asks for no precision."""
    del axes, precision
    return project(x, kernel)
