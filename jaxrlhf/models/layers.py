"""The parts of a decoder block as Linen modules, named as in the published checkpoints."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxrlhf.models.cache import read_layer, write_layer
from jaxrlhf.models.config import ModelConfig
from jaxrlhf.models.rotary import rotate
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
        self, x: jax.Array, rotary: Rotary, mask: jax.Array, cache: KVCache | None, layer: jax.Array | int
    ) -> tuple[jax.Array, KVCache | None]:
        """Mixes tokens.

        Args:
            x: [B, T, D].
            rotary: cosines and sines of the tokens' positions.
            mask: [B, 1, T, S] bool array, True where a token (T) sees a slot (S).
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
            keys, values = (part.astype(self.dtype) for part in read_layer(cache, layer))  # [B, S, KH, Dh]
        # A row that sees nothing gets equal weights, not NaN: masked scores are very low, but finite.
        mixed = jax.nn.dot_product_attention(queries, keys, values, mask=mask)
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
        gate = nn.silu(_dense(self.width, "gate_proj", self.dtype)(x))
        return _dense(x.shape[-1], "down_proj", self.dtype)(gate * _dense(self.width, "up_proj", self.dtype)(x))


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
        self, x: jax.Array, rotary: Rotary, mask: jax.Array, cache: KVCache | None, layer: jax.Array | int
    ) -> tuple[jax.Array, KVCache | None]:
        """Runs the layer; arguments and results are those of `Attention`."""
        eps = self.config.rms_eps
        normed = RMSNorm(eps, self.dtype, name="input_layernorm")(x)
        mixed, cache = Attention(self.config, self.dtype, name="self_attn")(normed, rotary, mask, cache, layer)
        x = x + mixed
        normed = RMSNorm(eps, self.dtype, name="post_attention_layernorm")(x)
        return x + MLP(self.config.intermediate_size, self.dtype, name="mlp")(normed), cache


def _dense(width: int, name: str, dtype: Any) -> nn.Dense:
    return nn.Dense(width, use_bias=False, dtype=dtype, kernel_init=nn.initializers.normal(INIT_STD), name=name)
