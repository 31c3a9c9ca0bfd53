"""The parts of a decoder block as Linen modules, named as in the published checkpoints."""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax

from jaxrlhf.models.attention import Mix, reads_cache
from jaxrlhf.models.cache import read_layer, write_layer
from jaxrlhf.models.config import ModelConfig, NormPlacement
from jaxrlhf.models.linear import Linear, LinearAfterActivation, Products
from jaxrlhf.models.norms import RMSNorm, make_norm
from jaxrlhf.models.rotary import rotate
from jaxrlhf.types import KVCache

_NORMS: dict[NormPlacement, tuple[str | None, str | None, str | None, str | None]] = {
    "pre": ("input_layernorm", None, "post_attention_layernorm", None),
    "post": (None, "post_attention_layernorm", None, "post_feedforward_layernorm"),
    "both": (
        "input_layernorm",
        "post_attention_layernorm",
        "pre_feedforward_layernorm",
        "post_feedforward_layernorm",
    ),
}
"""Published names of the norms before and after attention, before and after the MLP."""


class Seen(NamedTuple):
    """What a layer's tokens are told of their places.

    Attributes:
        rotary: cosines and sines of their positions, both [B, T, 1, R / 2] float32; None if heads do not turn.
        mix: weighs the values; knows which token sees which.
    """

    rotary: tuple[jax.Array, jax.Array] | None
    mix: Mix


class Attention(nn.Module):
    """Grouped-query attention (Ainslie et al. 2023).

    Attributes:
        config: the model.
        products: how products are computed.
    """

    config: ModelConfig
    products: Products

    @nn.compact
    def __call__(
        self, x: jax.Array, seen: Seen, cache: KVCache | None, layer: jax.Array | int
    ) -> tuple[jax.Array, KVCache | None]:
        """Mixes tokens.

        Args:
            x: [B, T, D].
            seen: what the tokens are told of their places.
            cache: where keys and values are written to and read from; None if the T tokens are all there is.
            layer: number of the layer in the cache.

        Returns:
            [B, T, D] array and the cache with the new keys and values.
        """
        config = self.config
        queries = self._turned(self._heads(x, config.num_heads, "q_proj"), "q_norm", seen)  # [B, T, H, Dh]
        keys = self._turned(self._heads(x, config.num_kv_heads, "k_proj"), "k_norm", seen)  # [B, T, KH, Dh]
        values = self._heads(x, config.num_kv_heads, "v_proj")
        if cache is not None:
            cache = write_layer(cache, layer, keys, values)
            if reads_cache(cache, x.shape[1]):
                keys, values = read_layer(cache, layer)  # [B, KH, S, Dh]
        mixed = seen.mix(queries, keys, values).reshape(*x.shape[:2], -1)
        return Linear(x.shape[-1], config.out_bias, self.products, name="o_proj")(mixed), cache

    def _heads(self, x: jax.Array, heads: int, name: str) -> jax.Array:
        config = self.config
        projected = Linear(heads * config.head_dim, config.qkv_bias, self.products, name=name)(x)
        return projected.reshape(*x.shape[:2], heads, config.head_dim)

    def _turned(self, heads: jax.Array, name: str, seen: Seen) -> jax.Array:
        """Queries or keys as scores are computed of them: normalised, if they are, and turned."""
        config = self.config
        if config.qk_norm != "none":
            norm = RMSNorm(config.norm_eps, config.norm_offset, self.products.dtype, name=name)
            whole = heads.reshape(*heads.shape[:2], -1) if config.qk_norm == "width" else heads
            heads = norm(whole).reshape(heads.shape)
        return heads if seen.rotary is None else rotate(heads, *seen.rotary)


class MLP(nn.Module):
    """The MLP of each token, gated (Shazeer 2020) or not.

    Attributes:
        config: the model.
        products: how products are computed.
    """

    config: ModelConfig
    products: Products

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, T, D] to [B, T, D], each token by itself."""
        config = self.config
        names = ("gate_proj", "up_proj") if config.gated_mlp else ("up_proj",)
        hidden = tuple(Linear(config.intermediate_size, config.mlp_bias, self.products, name=name)(x) for name in names)
        down = LinearAfterActivation(x.shape[-1], config.mlp_bias, self.products, config.activation, name="down_proj")
        return down(hidden)


class Block(nn.Module):
    """One layer: attention and MLP, each added to the stream.

    Attributes:
        config: the model.
        products: how products are computed.
    """

    config: ModelConfig
    products: Products

    @nn.compact
    def __call__(
        self, x: jax.Array, seen: Seen, cache: KVCache | None, layer: jax.Array | int
    ) -> tuple[jax.Array, KVCache | None]:
        """Runs the layer; arguments and results are those of `Attention`."""
        config = self.config
        before_mix, after_mix, before_mlp, after_mlp = map(self._norm, _NORMS[config.norm_placement])
        mixed, cache = Attention(config, self.products, name="self_attn")(before_mix(x), seen, cache, layer)
        stream = x + after_mix(mixed)
        read = x if config.parallel_residual else stream
        return stream + after_mlp(MLP(config, self.products, name="mlp")(before_mlp(read))), cache

    def _norm(self, name: str | None) -> Any:
        if name is None:
            return lambda x: x
        return make_norm(self.config, self.products.dtype, name)
