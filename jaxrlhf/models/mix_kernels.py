"""Attention by the kernels of accelerators: cuDNN's on NVIDIA GPUs, splash on TPUs.

They agree with `mix_xla.py` within rounding wherever a token is read. To them segment 0, padding, is one like any.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxrlhf.models.masks import within
from jaxrlhf.sharding.mesh import BATCH_AXES, Axis, divides

LANES = 128
"""The blocks of the splash kernel are multiples of a TPU's lanes."""

_KEPT = "kept by attention"
_keep_of_splash = jax.checkpoint_policies.save_only_these_names(_KEPT)
_MAX_SPLASH_BLOCK = 512


def mix_cudnn(
    segment_ids: jax.Array,
    prefix_ids: jax.Array | None,
    queries: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    *,
    positions: jax.Array | None = None,
    window: int | None = None,
    scale: float | None = None,
) -> jax.Array:
    """Attention among the tokens of a row by the kernel of cuDNN, which skips what lies above the diagonal.

    Args:
        segment_ids: [B, T] int array; tokens see earlier ones of their own segment, padding too.
        prefix_ids: [B, T] int array, a second segment that each token sees, 0 if none; None means 0 everywhere.
        queries: [B, T, H, Dh] bfloat16.
        keys: [B, T, KH, Dh] bfloat16.
        values: [B, T, KH, Dh] bfloat16.
        positions: [B, T] int array, needed with a window.
        window: how many positions a token sees, its own and those before it; None means all.
        scale: of the scores; None means 1 / sqrt(Dh).

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
    if positions is not None:
        seen &= within(_lengthen(positions, missing), window)
    mixed = jax.nn.dot_product_attention(
        queries, keys, values, mask=seen[:, None], is_causal=True, scale=scale, implementation="cudnn"
    )
    return mixed[:, :tokens]


def mix_splash_over_mesh(
    segment_ids: jax.Array, queries: jax.Array, keys: jax.Array, values: jax.Array, **options: Any
) -> jax.Array:
    """`mix_splash` on each device's rows and heads, which the compiler could not divide by itself; takes the same."""
    mesh, mix = jax.sharding.get_abstract_mesh(), functools.partial(mix_splash, **options)
    if mesh.empty:
        return mix(segment_ids, queries, keys, values)
    rows: Axis = BATCH_AXES if divides(queries.shape[0], BATCH_AXES, mesh.shape) else None
    heads: Axis = "tensor" if divides(keys.shape[2], "tensor", mesh.shape) else None
    tokens, parts = PartitionSpec(rows, None), PartitionSpec(rows, None, heads, None)
    run = jax.shard_map(mix, in_specs=(tokens, parts, parts, parts), out_specs=parts, check_vma=False)
    return run(segment_ids, queries, keys, values)


def mix_splash(
    segment_ids: jax.Array,
    queries: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    *,
    window: int | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    interpret: bool = False,
) -> jax.Array:
    """Attention among the tokens of a row by the splash kernel of TPUs, which skips what lies above the diagonal.

    Args:
        segment_ids: [B, T] int array; tokens see earlier ones of their own segment, padding too.
        queries: [B, T, H, Dh].
        keys: [B, T, KH, Dh].
        values: [B, T, KH, Dh].
        window: how many tokens of its segment a token sees, itself and those before it; None means all.
        scale: of the scores; None means 1 / sqrt(Dh).
        softcap: scores s become softcap * tanh(s / softcap); None leaves them.
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
    square = (tokens + missing, tokens + missing)
    # A row's segments have no gaps, so that a window of positions is one of columns.
    mask = splash.CausalMask(square) if window is None else splash.LocalMask(square, (window - 1, 0), offset=0)
    kernel = splash.make_splash_mha_single_device(
        splash.MultiHeadMask([mask] * heads),
        block_sizes=sizes,
        attn_logits_soft_cap=softcap,
        residual_checkpoint_name=_KEPT,
        interpret=interpret,
    )
    factor = width**-0.5 if scale is None else scale
    scaled = (queries.astype(jnp.float32) * factor).astype(queries.dtype)  # the kernel does not scale
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
