"""Attention: which backend mixes the tokens, chosen in one place, and the backends.

They agree within rounding wherever a token is read. What padding gets differs, and is finite in all of them: in `xla` a
token that sees nothing gets equal weights, in the others segment 0 is a segment like any other.
"""

from __future__ import annotations

import functools
import itertools
import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from jaxrlhf.models.cache import attention_mask
from jaxrlhf.models.config import AttentionBackend, AttentionChoice, ComputeConfig, ModelConfig
from jaxrlhf.sharding.mesh import BATCH_AXES, Axis, divides, target_platform
from jaxrlhf.types import KVCache

Mix = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
"""(queries [B, T, H, Dh], keys [B, S, KH, Dh], values [B, S, KH, Dh]) -> mixed values [B, T, H, Dh]."""

_KEPT = "kept by attention"
_keep_of_splash = jax.checkpoint_policies.save_only_these_names(_KEPT)
_BLOCKED_FROM = 128  # tokens; below, blocks save too little
_BLOCK, _MOST_BLOCKS = 256, 8  # of queries, tokens; blocks are unrolled, so more of them compile longer
_LOWEST = -1e30  # stands for -inf, which would make NaN of a token that sees nothing
_LANES = 128  # the splash kernel's blocks are multiples of a TPU's lanes
_MAX_SPLASH_BLOCK = 512
_FASTEST: dict[str, AttentionBackend] = {"cuda": "cudnn", "tpu": "splash"}

_log = logging.getLogger(__name__)


class Case(NamedTuple):
    """What the choice of a backend depends on.

    Attributes:
        platform: "cpu", "cuda", "rocm" or "tpu".
        dtype: of queries, keys and values.
        head_dim: width of a head, Dh.
        tokens: of a row, T.
        cached: whether keys and values come from a cache.
        prefixes: whether tokens see a second segment beside their own.
    """

    platform: str
    dtype: str
    head_dim: int
    tokens: int
    cached: bool
    prefixes: bool = False


def make_mix(
    config: ModelConfig,
    compute: ComputeConfig,
    segment_ids: jax.Array,
    cache: KVCache | None,
    prefix_ids: jax.Array | None = None,
) -> Mix:
    """Attention for the tokens of a forward pass: the same function for all layers.

    Args:
        config: the model.
        compute: `dtype` and the backend that is asked for.
        segment_ids: [B, T] int array of the tokens, 0 at padding; tokens see earlier ones of their own segment.
        cache: None if the tokens are all there is (then S = T), else a cache whose slots already carry `segment_ids`.
        prefix_ids: [B, T] int array, a second segment that each token sees, 0 if none; None means 0 everywhere.

    Returns:
        See `Mix`.

    Raises:
        ValueError: if the backend that is asked for cannot run.
    """
    prefixes = prefix_ids is not None
    case = Case(target_platform(), compute.dtype, config.head_dim, segment_ids.shape[1], cache is not None, prefixes)
    match choose_backend(compute.attention, case):
        case "cudnn":
            return functools.partial(_cudnn, segment_ids, prefix_ids)
        case "splash":
            return functools.partial(_splash_over_mesh, segment_ids)
        case _:
            mask = attention_mask(segment_ids, cache, prefix_ids)
            return functools.partial(mix_blocked if _blocks_pay(case) else _dense, mask)


def choose_backend(asked: AttentionChoice, case: Case) -> AttentionBackend:
    """The backend that runs: what is asked for or, for "auto", the fastest that can.

    With a cache it is always "xla": a step of decoding reads the cache once, whatever the backend.

    Raises:
        ValueError: if the backend that is asked for cannot run.
    """
    if case.cached or asked == "xla":
        return "xla"
    wanted = _FASTEST.get(case.platform, "xla") if asked == "auto" else asked
    obstacle = _obstacle(wanted, case)
    if obstacle is None:
        return wanted
    if asked == "auto":
        _say_once(f"attention runs on xla: {wanted} needs {obstacle}")
        return "xla"
    raise ValueError(f"compute.attention={asked!r} needs {obstacle}; choose 'auto' or 'xla'")


def keep_of_kernels(primitive: Any, *avals: Any, **params: Any) -> Any:
    """A policy for `jax.checkpoint`: keeps what a kernel of attention gives its backward pass.

    It is small, output and log-sum-exp, and dear to compute again.
    """
    if primitive.name == "dot_product_attention_fwd_wrapper":  # cuDNN's, which has no name to give
        return True
    return _keep_of_splash(primitive, *avals, **params)


def _obstacle(backend: AttentionBackend, case: Case) -> str | None:
    """What a backend needs and does not have."""
    if backend == "cudnn":
        needs = [
            (case.platform == "cuda", f"an NVIDIA GPU; the program is for {case.platform}"),
            (case.dtype == "bfloat16", f"compute.dtype=bfloat16; it is {case.dtype}"),
            (case.head_dim % 8 == 0 and case.head_dim <= 128, f"heads of 8, 16, ... 128; head_dim is {case.head_dim}"),
            (case.tokens % 2 == 0, f"an even number of tokens a row; there are {case.tokens}"),
        ]
    elif backend == "splash":
        needs = [
            (case.platform == "tpu", f"a TPU; the program is for {case.platform}"),
            (case.head_dim % 64 == 0, f"heads of 64, 128, ...; head_dim is {case.head_dim}"),
            (case.tokens >= _LANES, f"{_LANES} tokens a row or more; there are {case.tokens}"),
            (not case.prefixes, "a row for each answer, not one that answers share (data.share_prompts=false)"),
        ]
    else:
        needs = []
    return next((need for met, need in needs if not met), None)


def _blocks_pay(case: Case) -> bool:
    """Whether `xla` should skip scores above the diagonal; for accelerators that compiles several times as long."""
    return case.platform == "cpu" and not case.cached and case.tokens >= _BLOCKED_FROM


@functools.cache
def _say_once(line: str) -> None:
    _log.info(line)


def _dense(mask: jax.Array, queries: jax.Array, keys: jax.Array, values: jax.Array) -> jax.Array:
    # A row that sees nothing gets equal weights, not NaN: masked scores are very low, but finite.
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
    rows, tokens, heads, width = queries.shape
    groups = (rows, tokens, keys.shape[2], heads // keys.shape[2], width)
    queries = jnp.transpose((queries * width**-0.5).reshape(groups), (0, 2, 1, 3, 4))  # [B, KH, T, G, Dh]
    keys, values = (jnp.transpose(part, (0, 2, 1, 3)) for part in (keys, values))  # [B, KH, T, Dh]
    edges = np.linspace(0, tokens, min(max(tokens // _BLOCK, 2), _MOST_BLOCKS) + 1, dtype=int)
    mixed = [
        _mix_block(mask[:, :, start:end, :end], queries[:, :, start:end], keys[:, :, :end], values[:, :, :end])
        for start, end in itertools.pairwise(edges)
    ]
    return jnp.transpose(jnp.concatenate(mixed, axis=2), (0, 2, 1, 3, 4)).reshape(rows, tokens, heads, width)


def _mix_block(mask: jax.Array, queries: jax.Array, keys: jax.Array, values: jax.Array) -> jax.Array:
    scores = jnp.einsum("bktgd,bksd->bktgs", queries, keys, preferred_element_type=jnp.float32)
    scores = jnp.where(mask[:, :, :, None], scores, _LOWEST)
    weights = jnp.exp(scores - jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True)))
    mixed = jnp.einsum("bktgs,bksd->bktgd", weights.astype(values.dtype), values, preferred_element_type=jnp.float32)
    return (mixed / jnp.sum(weights, axis=-1, keepdims=True)).astype(values.dtype)


def _cudnn(
    segment_ids: jax.Array, prefix_ids: jax.Array | None, queries: jax.Array, keys: jax.Array, values: jax.Array
) -> jax.Array:
    # The kernel takes a mask, and no segments. It is causal beside that, and skips what lies above the diagonal.
    seen = segment_ids[:, :, None] == segment_ids[:, None, :]  # [B, T, T]
    if prefix_ids is not None:
        seen |= (prefix_ids[:, :, None] == segment_ids[:, None, :]) & (prefix_ids != 0)[:, :, None]
    return jax.nn.dot_product_attention(
        queries, keys, values, mask=seen[:, None], is_causal=True, implementation="cudnn"
    )


def _splash_over_mesh(segment_ids: jax.Array, queries: jax.Array, keys: jax.Array, values: jax.Array) -> jax.Array:
    """Runs the kernel on each device's rows and heads, which the compiler could not divide by itself."""
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
    missing = -tokens % _LANES
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
    """The longest block of at most `_MAX_SPLASH_BLOCK` tokens that divides them, a multiple of `_LANES`."""
    return next(size for size in range(_MAX_SPLASH_BLOCK, 0, -_LANES) if tokens % size == 0)
