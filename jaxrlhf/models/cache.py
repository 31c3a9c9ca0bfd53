"""The key/value cache: made empty, written in place, read whole."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint

from jaxrlhf.models.config import ModelConfig
from jaxrlhf.sharding.mesh import BATCH_AXES, constrain, target_platform
from jaxrlhf.types import KVCache


def make_cache(config: ModelConfig, batch: int, length: int, dtype: Any, *, stacked: bool) -> KVCache:
    """An empty cache.

    Args:
        config: the model.
        batch: rows, B.
        length: columns of a row, S: prompt and answer together.
        dtype: of keys and values.
        stacked: whether one array holds all layers, for a loop over layers, or each has its own. On CPUs and GPUs a
            layer's part of a stacked array would be copied at every step; on TPUs it is not, and a loop compiles fast.

    Returns:
        `KVCache` with S empty columns, all rows starting at the first.
    """
    shape = (batch, config.num_kv_heads, length, config.head_dim)
    spec = (BATCH_AXES, "tensor", None, None)
    if stacked:
        shape, spec = (config.num_layers, *shape), (None, *spec)

    def empty() -> Any:
        layers = [constrain(jnp.zeros(shape, dtype), *spec) for _ in range(1 if stacked else config.num_layers)]
        return layers[0] if stacked else tuple(layers)

    return KVCache(keys=empty(), values=empty(), start=jnp.zeros((batch,), jnp.int32), index=jnp.zeros((), jnp.int32))


def write_layer(cache: KVCache, layer: jax.Array | int, keys: jax.Array, values: jax.Array) -> KVCache:
    """Writes the new keys and values of one layer, in place where the caller gives the cache away.

    Args:
        cache: the cache, `index` at the column of the first new token. It must have room for T.
        layer: int scalar; a Python int where layers have arrays of their own.
        keys: [B, T, KH, Dh].
        values: [B, T, KH, Dh].

    Returns:
        The cache with T columns of that layer filled.

    Raises:
        ValueError: if T is more than the cache can ever hold.
    """
    if keys.shape[1] > cache.columns:
        raise ValueError(f"{keys.shape[1]} tokens do not fit into a cache of {cache.columns} columns; make it longer")

    def write(old: Any, new: jax.Array) -> Any:
        if isinstance(old, tuple):
            assert isinstance(layer, int)
            return (*old[:layer], _put(old[layer], new, (0, 0, cache.index, 0)), *old[layer + 1 :])
        return _put(old, new[None], (layer, 0, 0, cache.index, 0))

    by_head = [jnp.swapaxes(part, 1, 2) for part in (keys, values)]  # [B, KH, T, Dh]
    return dataclasses.replace(cache, keys=write(cache.keys, by_head[0]), values=write(cache.values, by_head[1]))


def read_layer(cache: KVCache, layer: jax.Array | int) -> tuple[jax.Array, jax.Array]:
    """Keys and values of all columns of one layer, both [B, KH, S, Dh]; arguments as `write_layer`."""

    def read(parts: Any) -> jax.Array:
        if isinstance(parts, tuple):
            return parts[layer]
        return jax.lax.dynamic_index_in_dim(parts, layer, keepdims=False)

    return read(cache.keys), read(cache.values)


def _put(old: jax.Array, new: jax.Array, start: Any) -> jax.Array:
    written = jax.lax.dynamic_update_slice(old, new.astype(old.dtype), start)
    if target_platform() != "tpu":
        return written
    # Else the compiler lays the cache out for the write of a column: rows beside the head's width. It then turns all of
    # it before and after the loop, which takes a second cache, and each layer again before the products.
    return with_layout_constraint(written, Layout(major_to_minor=tuple(range(written.ndim))))
