"""The key/value cache: one stacked array for all layers, written in place."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxrlhf.models.config import ModelConfig
from jaxrlhf.sharding.mesh import BATCH_AXES, constrain
from jaxrlhf.types import KVCache


def make_cache(config: ModelConfig, batch: int, length: int, dtype: Any) -> KVCache:
    """An empty cache.

    Args:
        config: the model.
        batch: rows, B.
        length: slots for each row, S: prompt and answer together.
        dtype: of keys and values.

    Returns:
        `KVCache` with S empty slots.
    """
    shape = (config.num_layers, batch, length, config.num_kv_heads, config.head_dim)
    spec = (None, BATCH_AXES, None, "tensor", None)
    return KVCache(
        keys=constrain(jnp.zeros(shape, dtype), *spec),
        values=constrain(jnp.zeros(shape, dtype), *spec),
        segment_ids=constrain(jnp.zeros((batch, length), jnp.int32), BATCH_AXES, None),
        index=jnp.zeros((), jnp.int32),
    )


def attention_mask(segment_ids: jax.Array, cache: KVCache | None, prefix_ids: jax.Array | None = None) -> jax.Array:
    """Which slot each token sees: its own and earlier ones of its own segment; padding sees nothing.

    Args:
        segment_ids: [B, T] int array of the tokens, 0 at padding.
        cache: None if the tokens are all there is (then S = T), else a cache whose slots already carry `segment_ids`
            (see `open_slots`).
        prefix_ids: [B, T] int array, a second segment whose earlier tokens each token sees, 0 if none; None means 0
            everywhere.

    Returns:
        [B, 1, T, S] bool array.
    """
    first = 0 if cache is None else cache.index
    slot_segments = segment_ids if cache is None else cache.segment_ids
    queries = first + jnp.arange(segment_ids.shape[1])
    keys = jnp.arange(slot_segments.shape[1])
    causal = keys[None, :] <= queries[:, None]  # [T, S]
    seen = _holds(slot_segments, segment_ids)
    if prefix_ids is not None:
        seen |= _holds(slot_segments, prefix_ids)
    return (causal[None] & seen)[:, None]


def _holds(slot_segments: jax.Array, wanted: jax.Array) -> jax.Array:
    """[B, T, S] bool: whether a slot (of [B, S]) is of the wanted segment (of [B, T]); nothing is of segment 0."""
    return (wanted[:, :, None] == slot_segments[:, None, :]) & (wanted != 0)[:, :, None]


def open_slots(cache: KVCache, segment_ids: jax.Array) -> KVCache:
    """Marks the slots that the coming tokens will be written to.

    Args:
        cache: the cache, `index` at the first free slot.
        segment_ids: [B, T] int array of the coming tokens.

    Returns:
        The cache with `segment_ids` in it; keys, values and index are as they were.

    Raises:
        ValueError: if T is more than the cache can ever hold.
    """
    slots, tokens = cache.segment_ids.shape[1], segment_ids.shape[1]
    if tokens > slots:
        raise ValueError(f"{tokens} tokens do not fit into a cache of {slots} slots; make it longer")
    new = segment_ids.astype(jnp.int32)
    return dataclasses.replace(
        cache, segment_ids=jax.lax.dynamic_update_slice(cache.segment_ids, new, (0, cache.index))
    )


def write_layer(cache: KVCache, layer: jax.Array | int, keys: jax.Array, values: jax.Array) -> KVCache:
    """Writes the new keys and values of one layer, in place where the caller gives the cache away.

    Args:
        cache: the cache, `index` at the slot of the first new token.
        layer: int scalar.
        keys: [B, T, KH, Dh].
        values: [B, T, KH, Dh].

    Returns:
        The cache with T slots of that layer filled.
    """
    start = (layer, 0, cache.index, 0, 0)
    return dataclasses.replace(
        cache,
        keys=jax.lax.dynamic_update_slice(cache.keys, keys[None].astype(cache.keys.dtype), start),
        values=jax.lax.dynamic_update_slice(cache.values, values[None].astype(cache.values.dtype), start),
    )


def read_layer(cache: KVCache, layer: jax.Array | int) -> tuple[jax.Array, jax.Array]:
    """Keys and values of all slots of one layer.

    Args:
        cache: the cache.
        layer: int scalar.

    Returns:
        Keys and values, both [B, S, KH, Dh].
    """
    return (
        jax.lax.dynamic_index_in_dim(cache.keys, layer, keepdims=False),
        jax.lax.dynamic_index_in_dim(cache.values, layer, keepdims=False),
    )
