"""The backends of attention: what mixes the tokens of a row. Which of them runs is decided in `attention.py`.

They agree within rounding wherever a token is read. What padding gets differs, and is finite in all of them: a
token that sees nothing gets equal weights in `mix_whole` and `mix_blocked`; in the others segment 0 is one like any.
"""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from jaxrlhf.sharding.mesh import BATCH_AXES, Axis, divides

LANES = 128
"""The blocks of the splash kernel are multiples of a TPU's lanes."""

_KEPT = "kept by attention"
_keep_of_splash = jax.checkpoint_policies.save_only_these_names(_KEPT)
_BLOCK, _MOST_BLOCKS = 256, 8  # of queries, tokens; blocks are unrolled, so more of them compile longer
_LOWEST = -1e30  # stands for -inf, which would make NaN of a token that sees nothing
_MAX_SPLASH_BLOCK = 512


def segment_mask(segment_ids: jax.Array, prefix_ids: jax.Array | None = None) -> jax.Array:
    """Which token each token sees: itself and earlier ones of its own segment; padding sees nothing.

    Args:
        segment_ids: [B, T] int array of the tokens, 0 at padding.
        prefix_ids: [B, T] int array, a second segment whose earlier tokens each token sees, 0 if none; None means 0
            everywhere.

    Returns:
        [B, 1, T, T] bool array, True where a token (row) sees another (column).
    """
    tokens = jnp.arange(segment_ids.shape[1])
    seen = _holds(segment_ids, segment_ids)
    if prefix_ids is not None:
        seen |= _holds(segment_ids, prefix_ids)
    return ((tokens[None, :] <= tokens[:, None])[None] & seen)[:, None]


def _holds(segment_ids: jax.Array, wanted: jax.Array) -> jax.Array:
    """[B, T, T] bool: whether a token (column) is of the segment that another (row) wants; none is of segment 0."""
    return (wanted[:, :, None] == segment_ids[:, None, :]) & (wanted != 0)[:, :, None]


def mix_whole(mask: jax.Array, queries: jax.Array, keys: jax.Array, values: jax.Array) -> jax.Array:
    """Attention with the scores of all queries and keys in memory at once.

    A token that sees nothing gets equal weights, not NaN: masked scores are very low, but finite.

    Args:
        mask: [B, 1, T, T] bool array, True where a token (row) sees another (column).
        queries: [B, T, H, Dh].
        keys: [B, T, KH, Dh].
        values: [B, T, KH, Dh].

    Returns:
        [B, T, H, Dh].
    """
    return jax.nn.dot_product_attention(queries, keys, values, mask=mask)


def mix_blocked(mask: jax.Array, queries: jax.Array, keys: jax.Array, values: jax.Array) -> jax.Array:
    """Attention among the tokens of a row, each block of queries against the keys up to its end.

    Heads come first within, so that products need no transposed copies of scores; weights are normalised after the
    product with the values, which are fewer.

    Args:
        mask: [B, 1, T, T] bool array, False above the diagonal; True where a token (row) sees another (column).
        queries: [B, T, H, Dh].
        keys: [B, T, KH, Dh].
        values: [B, T, KH, Dh].

    Returns:
        [B, T, H, Dh].
    """
    tokens, queries = queries.shape[1], _by_head(queries, keys.shape[2])
    keys, values = (jnp.transpose(part, (0, 2, 1, 3)) for part in (keys, values))  # [B, KH, T, Dh]
    edges = np.linspace(0, tokens, min(max(tokens // _BLOCK, 2), _MOST_BLOCKS) + 1, dtype=int)
    mixed = [
        _mix_block(mask[:, :, start:end, :end], queries[:, :, start:end], keys[:, :, :end], values[:, :, :end])
        for start, end in itertools.pairwise(edges)
    ]
    return _by_token(jnp.concatenate(mixed, axis=2))


def mix_cached(mask: jax.Array, queries: jax.Array, keys: jax.Array, values: jax.Array) -> jax.Array:
    """Attention of a few tokens to the columns of a cache, whose keys are neither repeated nor turned.

    Args:
        mask: [B, 1, T, S] bool array, True where a token (row) sees a column.
        queries: [B, T, H, Dh].
        keys: [B, KH, S, Dh].
        values: [B, KH, S, Dh].

    Returns:
        [B, T, H, Dh].
    """
    dtype = queries.dtype
    return _by_token(_mix_block(mask, _by_head(queries, keys.shape[1]), keys.astype(dtype), values.astype(dtype)))


def _by_head(queries: jax.Array, kv_heads: int) -> jax.Array:
    """Scaled queries, those that share a head of keys together: [B, T, H, Dh] becomes [B, KH, T, G, Dh]."""
    *leading, heads, width = queries.shape
    groups = (queries * width**-0.5).reshape(*leading, kv_heads, heads // kv_heads, width)
    return jnp.transpose(groups, (0, 2, 1, 3, 4))


def _by_token(mixed: jax.Array) -> jax.Array:
    """[B, KH, T, G, Dh] becomes [B, T, H, Dh]."""
    rows, kv_heads, tokens, group, width = mixed.shape
    return jnp.transpose(mixed, (0, 2, 1, 3, 4)).reshape(rows, tokens, kv_heads * group, width)


def _mix_block(mask: jax.Array, queries: jax.Array, keys: jax.Array, values: jax.Array) -> jax.Array:
    scores = jnp.einsum("bktgd,bksd->bktgs", queries, keys, preferred_element_type=jnp.float32)
    scores = jnp.where(mask[:, :, :, None], scores, _LOWEST)
    weights = jnp.exp(scores - jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True)))
    mixed = jnp.einsum("bktgs,bksd->bktgd", weights.astype(values.dtype), values, preferred_element_type=jnp.float32)
    return (mixed / jnp.sum(weights, axis=-1, keepdims=True)).astype(values.dtype)


def mix_cudnn(
    segment_ids: jax.Array, prefix_ids: jax.Array | None, queries: jax.Array, keys: jax.Array, values: jax.Array
) -> jax.Array:
    """Attention among the tokens of a row by the kernel of cuDNN, which skips what lies above the diagonal.

    Args:
        segment_ids: [B, T] int array; tokens see earlier ones of their own segment, padding too.
        prefix_ids: [B, T] int array, a second segment that each token sees, 0 if none; None means 0 everywhere.
        queries: [B, T, H, Dh] bfloat16.
        keys: [B, T, KH, Dh] bfloat16.
        values: [B, T, KH, Dh] bfloat16.

    Returns:
        [B, T, H, Dh] bfloat16.
    """
    tokens = queries.shape[1]
    missing = tokens % 2  # the gradient of the kernel takes even numbers of tokens alone
    queries, keys, values = (_lengthen(part, missing) for part in (queries, keys, values))
    segment_ids = _lengthen(segment_ids, missing)
    # The kernel takes a mask, and no segments; it is causal beside that.
    seen = segment_ids[:, :, None] == segment_ids[:, None, :]  # [B, T, T]
    if prefix_ids is not None:
        prefix_ids = _lengthen(prefix_ids, missing)
        seen |= (prefix_ids[:, :, None] == segment_ids[:, None, :]) & (prefix_ids != 0)[:, :, None]
    mixed = jax.nn.dot_product_attention(
        queries, keys, values, mask=seen[:, None], is_causal=True, implementation="cudnn"
    )
    return mixed[:, :tokens]


def mix_splash_over_mesh(segment_ids: jax.Array, queries: jax.Array, keys: jax.Array, values: jax.Array) -> jax.Array:
    """`mix_splash` on each device's rows and heads, which the compiler could not divide by itself; takes the same."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return mix_splash(segment_ids, queries, keys, values)
    rows: Axis = BATCH_AXES if divides(queries.shape[0], BATCH_AXES, mesh.shape) else None
    heads: Axis = "tensor" if divides(keys.shape[2], "tensor", mesh.shape) else None
    tokens, parts = PartitionSpec(rows, None), PartitionSpec(rows, None, heads, None)
    run = jax.shard_map(mix_splash, in_specs=(tokens, parts, parts, parts), out_specs=parts, check_vma=False)
    return run(segment_ids, queries, keys, values)


def mix_splash(
    segment_ids: jax.Array, queries: jax.Array, keys: jax.Array, values: jax.Array, *, interpret: bool = False
) -> jax.Array:
    """Attention among the tokens of a row by the splash kernel of TPUs, which skips what lies above the diagonal.

    Args:
        segment_ids: [B, T] int array; tokens see earlier ones of their own segment, padding too.
        queries: [B, T, H, Dh].
        keys: [B, T, KH, Dh].
        values: [B, T, KH, Dh].
        interpret: whether to compute what the kernel would, without a TPU.

    Returns:
        [B, T, H, Dh].
    """
    # Only traced where it is used: importing Pallas takes a while.
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    tokens, heads, width = queries.shape[1:]
    missing = -tokens % LANES
    ids, queries, keys, values = (_lengthen(part, missing) for part in (segment_ids, queries, keys, values))
    block = _block_length(tokens + missing)
    sizes = splash.BlockSizes(
        block_q=block,
        block_kv=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_q_dq=block,
        block_kv_dq=block,
    )
    causal = splash.CausalMask((tokens + missing, tokens + missing))
    kernel = splash.make_splash_mha_single_device(
        splash.MultiHeadMask([causal] * heads),
        block_sizes=sizes,
        residual_checkpoint_name=_KEPT,
        interpret=interpret,
    )
    scaled = (queries.astype(jnp.float32) * width**-0.5).astype(queries.dtype)  # the kernel does not scale
    first = [jnp.swapaxes(part, 1, 2) for part in (scaled, keys, values)]  # [B, H or KH, T, Dh]
    mixed: Any = jax.vmap(kernel)(*first, splash.SegmentIds(ids, ids))
    return jnp.swapaxes(mixed, 1, 2)[:, :tokens].astype(values.dtype)


def _lengthen(x: jax.Array, missing: int) -> jax.Array:
    """Adds tokens of zeros, or segment 0, at the end of [B, T, ...]."""
    return jnp.pad(x, [(0, missing if axis == 1 else 0) for axis in range(x.ndim)]) if missing else x


def _block_length(tokens: int) -> int:
    """The longest block of at most `_MAX_SPLASH_BLOCK` tokens that divides them, a multiple of `LANES`."""
    return next(size for size in range(_MAX_SPLASH_BLOCK, 0, -LANES) if tokens % size == 0)


def keep_of_kernels(primitive: Any, *avals: Any, **params: Any) -> Any:
    """A policy for `jax.checkpoint`: keeps what a kernel of attention gives its backward pass.

    It is small, output and log-sum-exp, and dear to compute again.
    """
    if primitive.name == "dot_product_attention_fwd_wrapper":  # cuDNN's, which has no name to give
        return True
    return _keep_of_splash(primitive, *avals, **params)
