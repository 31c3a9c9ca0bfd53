"""Attention by plain products and a softmax, which run on any device.

A token that sees nothing gets equal weights, not NaN: masked scores are very low, but finite.
"""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np

_BLOCK, _MOST_BLOCKS = 256, 8  # of queries, tokens; blocks are unrolled, so more of them compile longer
_LOWEST = -1e30  # stands for -inf, which would make NaN of a token that sees nothing


def mix_whole(
    mask: jax.Array,
    queries: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    *,
    scale: float | None = None,
    softcap: float | None = None,
) -> jax.Array:
    """Attention with the scores of all queries and keys in memory at once.

    Args:
        mask: [B, 1, T, T] bool array, True where a token (row) sees another (column).
        queries: [B, T, H, Dh].
        keys: [B, T, KH, Dh].
        values: [B, T, KH, Dh].
        scale: of the scores; None means 1 / sqrt(Dh).
        softcap: scores s become softcap * tanh(s / softcap); None leaves them.

    Returns:
        [B, T, H, Dh].
    """
    if softcap is None:
        return jax.nn.dot_product_attention(queries, keys, values, mask=mask, scale=scale)
    keys, values = (jnp.swapaxes(part, 1, 2) for part in (keys, values))
    return mix_cached(mask, queries, keys, values, scale=scale, softcap=softcap)


def mix_blocked(
    mask: jax.Array,
    queries: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    *,
    scale: float | None = None,
    softcap: float | None = None,
) -> jax.Array:
    """Attention among the tokens of a row, each block of queries against the keys up to its end.

    Heads come first within, so that products need no transposed copies of scores; weights are normalised after the
    product with the values, which are fewer.

    Args:
        mask: [B, 1, T, T] bool array, False above the diagonal; True where a token (row) sees another (column).
        queries: [B, T, H, Dh].
        keys: [B, T, KH, Dh].
        values: [B, T, KH, Dh].
        scale: of the scores; None means 1 / sqrt(Dh).
        softcap: scores s become softcap * tanh(s / softcap); None leaves them.

    Returns:
        [B, T, H, Dh].
    """
    tokens, queries = queries.shape[1], _by_head(queries, keys.shape[2], scale)
    keys, values = (jnp.swapaxes(part, 1, 2) for part in (keys, values))  # [B, KH, T, Dh]
    edges = np.linspace(0, tokens, min(max(tokens // _BLOCK, 2), _MOST_BLOCKS) + 1, dtype=int)
    mixed = [
        _mix_block(mask[:, :, start:end, :end], queries[:, :, start:end], keys[:, :, :end], values[:, :, :end], softcap)
        for start, end in itertools.pairwise(edges)
    ]
    return _by_token(jnp.concatenate(mixed, axis=2))


def mix_cached(
    mask: jax.Array,
    queries: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    *,
    scale: float | None = None,
    softcap: float | None = None,
) -> jax.Array:
    """Attention of a few tokens to the columns of a cache, whose keys are neither repeated nor turned.

    Args:
        mask: [B, 1, T, S] bool array, True where a token (row) sees a column.
        queries: [B, T, H, Dh].
        keys: [B, KH, S, Dh].
        values: [B, KH, S, Dh].
        scale: of the scores; None means 1 / sqrt(Dh).
        softcap: scores s become softcap * tanh(s / softcap); None leaves them.

    Returns:
        [B, T, H, Dh].
    """
    dtype = queries.dtype
    queries = _by_head(queries, keys.shape[1], scale)
    return _by_token(_mix_block(mask, queries, keys.astype(dtype), values.astype(dtype), softcap))


def _by_head(queries: jax.Array, kv_heads: int, scale: float | None) -> jax.Array:
    """Scaled queries, those that share a head of keys together: [B, T, H, Dh] becomes [B, KH, T, G, Dh]."""
    *leading, heads, width = queries.shape
    groups = (queries * (width**-0.5 if scale is None else scale)).reshape(*leading, kv_heads, heads // kv_heads, width)
    return jnp.transpose(groups, (0, 2, 1, 3, 4))


def _by_token(mixed: jax.Array) -> jax.Array:
    """[B, KH, T, G, Dh] becomes [B, T, H, Dh]."""
    rows, kv_heads, tokens, group, width = mixed.shape
    return jnp.transpose(mixed, (0, 2, 1, 3, 4)).reshape(rows, tokens, kv_heads * group, width)


def _mix_block(
    mask: jax.Array, queries: jax.Array, keys: jax.Array, values: jax.Array, softcap: float | None
) -> jax.Array:
    scores = jnp.einsum("bktgd,bksd->bktgs", queries, keys, preferred_element_type=jnp.float32)
    scores = scores if softcap is None else softcap * jnp.tanh(scores / softcap)
    scores = jnp.where(mask[:, :, :, None], scores, _LOWEST)
    weights = jnp.exp(scores - jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True)))
    mixed = jnp.einsum("bktgs,bksd->bktgd", weights.astype(values.dtype), values, preferred_element_type=jnp.float32)
    return (mixed / jnp.sum(weights, axis=-1, keepdims=True)).astype(values.dtype)
