"""Attention: which backend mixes the tokens, chosen in one place.

The backends are in `mix_xla.py` and `mix_kernels.py`.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from jaxrlhf.models.config import AttentionBackend, AttentionChoice, ComputeConfig, LayerKind, ModelConfig
from jaxrlhf.models.masks import seen_columns, segment_mask
from jaxrlhf.models.mix_kernels import LANES, mix_cudnn, mix_splash_over_mesh
from jaxrlhf.models.mix_xla import mix_blocked, mix_cached, mix_whole
from jaxrlhf.sharding.mesh import platform_of, target_platform
from jaxrlhf.types import KVCache

Mix = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
"""(queries [B, T, H, Dh], keys, values) -> mixed values [B, T, H, Dh].

Keys and values are those of the T tokens, both [B, T, KH, Dh], or what `reads_cache` says to read: [B, KH, S, Dh].
"""

_BLOCKED_FROM = 128  # tokens; below, blocks save too little
_FASTEST: dict[str, AttentionBackend] = {"cuda": "cudnn", "tpu": "splash"}

_log = logging.getLogger(__name__)


class Case(NamedTuple):
    """What the choice of a backend depends on.

    Attributes:
        platform: "cpu", "cuda", "rocm" or "tpu".
        dtype: of queries, keys and values.
        head_dim: width of a head, Dh.
        tokens: of a row, T.
        prefixes: whether tokens see a second segment beside their own.
        softcap: whether scores are capped.
    """

    platform: str
    dtype: str
    head_dim: int
    tokens: int
    prefixes: bool = False
    softcap: bool = False


def make_mix(
    config: ModelConfig,
    compute: ComputeConfig,
    kind: LayerKind,
    segment_ids: jax.Array,
    positions: jax.Array,
    cache: KVCache | None,
    prefix_ids: jax.Array | None = None,
) -> Mix:
    """Attention for the tokens of a forward pass: the same function for all layers of a kind.

    Args:
        config: the model.
        compute: `dtype` and the backend that is asked for.
        kind: of the layers.
        segment_ids: [B, T] int array of the tokens, 0 at padding; tokens see earlier ones of their own segment.
        positions: [B, T] int array of the tokens, which a window is counted in.
        cache: where earlier tokens are, or None.
        prefix_ids: [B, T] int array, a second segment that each token sees, 0 if none; None means 0 everywhere.

    Returns:
        See `Mix`.

    Raises:
        ValueError: if the backend that is asked for cannot run.
    """
    prefixes, tokens, window = prefix_ids is not None, segment_ids.shape[1], kind.window
    scoring: dict[str, Any] = {"scale": config.attention_scale, "softcap": config.attention_softcap}
    if cache is not None and reads_cache(cache, tokens):
        return functools.partial(mix_cached, seen_columns(cache, tokens, window), **scoring)
    case = _case(config, compute, tokens, prefixes=prefixes)
    choose = choose_backend if cache is None else _what_can
    match choose(compute.attention, case):
        case "cudnn":
            options = {"positions": positions, "window": window, "scale": config.attention_scale}
            return functools.partial(mix_cudnn, segment_ids, prefix_ids, **options)
        case "splash":
            return functools.partial(mix_splash_over_mesh, segment_ids, window=window, **scoring)
        case _:
            mask = segment_mask(segment_ids, prefix_ids, positions=positions, window=window)
            return functools.partial(mix_blocked if _blocks_pay(case) else mix_whole, mask, **scoring)


def reads_cache(cache: KVCache, tokens: int) -> bool:
    """Whether T tokens that are written to a cache see others there; if they fill it, they are all there is.

    A step of decoding reads the cache once, whatever the backend; a prompt that fills its cache has every backend.
    """
    return cache.columns > tokens


def check_attention(mesh: Mesh, compute: ComputeConfig, *, prefixes: bool = False) -> None:
    """Refuses a backend that cannot run whatever the model is; call it before one is loaded.

    Args:
        mesh: the devices.
        compute: `dtype` and the backend that is asked for.
        prefixes: whether tokens will see a second segment beside their own.

    Raises:
        ValueError: if the devices are not of its kind, or it cannot have the dtype or prefixes.
    """
    asked = compute.attention
    if asked != "auto":
        # A row and heads that every backend takes.
        case = Case(platform_of(mesh.devices.flat[0]), compute.dtype, 64, LANES, prefixes)
        choose_backend(asked, case)


def why_not_share(config: ModelConfig, compute: ComputeConfig, tokens: int) -> str | None:
    """Why answers should not share a row, unless somebody asks for it.

    The backend that would run without it may not run with it; and `xla` on accelerators holds the scores of whole rows,
    so that memory grows with the square of their length.

    Args:
        config: the model.
        compute: `dtype` and the backend that is asked for.
        tokens: of the longest row that is not shared.

    Returns:
        What the log says, or None.
    """
    case = _case(config, compute, tokens)
    wanted = _wanted(compute.attention, case)
    if wanted == "xla" or _obstacle(wanted, case) is not None:
        return None if case.platform == "cpu" else "attention on xla would hold the scores of longer rows"
    return None if _obstacle(wanted, case._replace(prefixes=True)) is None else f"attention on {wanted} needs that"


def choose_backend(asked: AttentionChoice, case: Case) -> AttentionBackend:
    """The backend that runs: what is asked for or, for "auto", the fastest that can.

    Raises:
        ValueError: if the backend that is asked for cannot run.
    """
    if asked == "xla":
        return "xla"
    wanted = _wanted(asked, case)
    obstacle = _obstacle(wanted, case)
    if obstacle is None:
        return wanted
    if asked == "auto":
        _say_once(f"attention runs on xla: {wanted} needs {obstacle}")
        return "xla"
    raise ValueError(f"compute.attention={asked!r} needs {obstacle}; choose 'auto' or 'xla'")


def _case(config: ModelConfig, compute: ComputeConfig, tokens: int, *, prefixes: bool = False) -> Case:
    softcap = config.attention_softcap is not None
    return Case(target_platform(), compute.dtype, config.head_dim, tokens, prefixes, softcap)


def _what_can(asked: AttentionChoice, case: Case) -> AttentionBackend:
    """The backend for prompts before decoding, which are often too short for the one that training asks for."""
    wanted = _wanted(asked, case)
    return "xla" if _obstacle(wanted, case) is not None else wanted


def _wanted(asked: AttentionChoice, case: Case) -> AttentionBackend:
    return _FASTEST.get(case.platform, "xla") if asked == "auto" else asked


def _obstacle(backend: AttentionBackend, case: Case) -> str | None:
    """What a backend needs and does not have."""
    if backend == "cudnn":
        needs = [
            (case.platform == "cuda", f"an NVIDIA GPU; the program is for {case.platform}"),
            (case.dtype == "bfloat16", f"compute.dtype=bfloat16; it is {case.dtype}"),
            (case.head_dim % 8 == 0 and case.head_dim <= 128, f"heads of 8, 16, ... 128; head_dim is {case.head_dim}"),
            (not case.softcap, "scores that are not capped"),
        ]
    elif backend == "splash":
        needs = [
            (case.platform == "tpu", f"a TPU; the program is for {case.platform}"),
            (case.head_dim % 64 == 0, f"heads of 64, 128, ...; head_dim is {case.head_dim}"),
            (case.tokens >= LANES, f"{LANES} tokens a row or more; there are {case.tokens}"),
            (not case.prefixes, "a row for each answer, not one that answers share (share_prompts=false)"),
        ]
    else:
        needs = []
    return next((need for met, need in needs if not met), None)


def _blocks_pay(case: Case) -> bool:
    """Whether `xla` should skip scores above the diagonal; for accelerators that compiles several times as long."""
    return case.platform == "cpu" and case.tokens >= _BLOCKED_FROM


@functools.cache
def _say_once(line: str) -> None:
    _log.info(line)
