"""The section `correctness`, its attention: each backend against float64, values and gradients."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.device_check import attention_oracle
from benchmarks.device_check.attention_oracle import Case
from benchmarks.device_check.contest import attempt
from benchmarks.device_check.correctness import ROUNDED, verdict
from benchmarks.device_check.shapes import AttentionShape, Shapes
from benchmarks.device_check.sheet import Row, Sheet
from jaxrlhf.models.masks import segment_mask
from jaxrlhf.models.mix_kernels import mix_cudnn, mix_splash
from jaxrlhf.models.mix_xla import mix_blocked, mix_whole

BOUNDS = {"float32": {"value": 5e-6, "gradient": 2e-6}, "bfloat16": {"value": 2e-2, "gradient": 1e-2}}
"""Values absolute, of inputs about 1; gradients by the norm of the difference over the norm. Of the same operands."""

MixSegments = Callable[..., jax.Array]
"""(segment_ids, prefix_ids or None, queries, keys, values) -> mixed values; see `models/mix_kernels.py`."""

Outcome = tuple[Any, tuple[Any, Any, Any]]  # mixed values; gradients by queries, keys and values


def measure(sheet: Sheet, shapes: Shapes, platform: str) -> None:
    """Writes a row for each shape, backend and dtype, with rows that answers share and without.

    Args:
        sheet: the section's.
        shapes: which shapes.
        platform: what jax calls the device, whose own kernel is among the backends.
    """
    for shape in shapes.attention:
        for prefixes in (False, True):
            for name, mix in backends_of(platform).items():
                for dtype in BOUNDS:
                    if name.startswith("xla") or (dtype == "bfloat16" and not (prefixes and name == "splash")):
                        _row(sheet, shape, name, mix, dtype, prefixes=prefixes)


def backends_of(platform: str) -> dict[str, MixSegments]:
    """The backends of a device; kernels are held in bfloat16, which is what they are for."""
    backends: dict[str, MixSegments] = {
        "xla": functools.partial(_masked, mix_whole),
        "xla, blocked": functools.partial(_masked, mix_blocked),
    }
    if platform == "gpu":
        backends["cudnn"] = mix_cudnn
    if platform == "tpu":
        backends["splash"] = lambda segment_ids, prefix_ids, *parts: mix_splash(segment_ids, *parts)
    return backends


def make_case(shape: AttentionShape, dtype: str, *, prefixes: bool) -> Case:
    """A random input that the dtype holds exactly.

    Three segments and padding behind them; with prefixes, the second and third see the first, which is their prompt.
    """
    rng = np.random.default_rng(0)

    def random(heads: int) -> np.ndarray:
        array = rng.normal(size=(shape.rows, shape.tokens, heads, shape.head_dim))
        return np.asarray(jnp.asarray(array, dtype).astype(jnp.float32), np.float64)

    edges = np.sort(rng.integers(1, shape.tokens - 1, size=(shape.rows, 3)))
    after = np.sum(np.arange(shape.tokens) >= edges[:, :, None], axis=1)  # edges up to each token
    segment_ids = np.where(after == 3, 0, after + 1)
    return Case(
        queries=random(shape.heads),
        keys=random(shape.kv_heads),
        values=random(shape.kv_heads),
        segment_ids=segment_ids,
        prefix_ids=np.where(segment_ids > 1, 1, 0) if prefixes else None,
        cotangents=np.where((segment_ids != 0)[:, :, None, None], random(shape.heads), 0.0),
    )


def outcome_of(case: Case, mix: MixSegments, dtype: str) -> Outcome:
    """Runs a backend, values and gradients in one program."""
    segment_ids = jnp.asarray(case.segment_ids, jnp.int32)
    prefix_ids = None if case.prefix_ids is None else jnp.asarray(case.prefix_ids, jnp.int32)
    parts = [jnp.asarray(part, dtype) for part in (case.queries, case.keys, case.values)]

    @jax.jit
    def run(segment_ids: jax.Array, prefix_ids: jax.Array | None, parts: Any, cotangents: jax.Array) -> Any:
        out, pull_back = jax.vjp(functools.partial(mix, segment_ids, prefix_ids), *parts)
        return jnp.where((segment_ids != 0)[:, :, None, None], out, 0), pull_back(cotangents)

    # Products of bfloat16 are exact, and the splash kernel does not compile where more than that is asked for.
    with jax.default_matmul_precision("highest" if dtype == "float32" else "default"):
        return run(segment_ids, prefix_ids, parts, jnp.asarray(case.cotangents, dtype))


def errors_of(case: Case, outcome: Outcome, dtype: str) -> tuple[dict[str, float], Row]:
    """How far an outcome is from float64, and the bounds.

    Returns:
        Name -> error, and name -> bound.
    """
    found, by_parts = outcome
    errors = {"values": float(np.max(np.abs(_float64(found) - attention_oracle.mixed(case))))}
    true = dict(zip(("by queries", "by keys", "by values"), attention_oracle.gradients(case), strict=True))
    for (name, right), part in zip(true.items(), by_parts, strict=True):
        errors[name] = float(np.linalg.norm(_float64(part) - right) / np.linalg.norm(right))
    return errors, {"values": BOUNDS[dtype]["value"]} | dict.fromkeys(true, BOUNDS[dtype]["gradient"])


def _row(sheet: Sheet, shape: AttentionShape, name: str, mix: MixSegments, dtype: str, *, prefixes: bool) -> None:
    row = {
        "name": "attention, rows of several answers" if prefixes else "attention",
        "shape": str(shape),
        "dtype": ROUNDED[dtype],
        "implementation": name,
    }

    def work() -> Row:
        case = make_case(shape, dtype, prefixes=prefixes)
        return verdict(*errors_of(case, outcome_of(case, mix, dtype), dtype))

    done = attempt(sheet, row, work)
    if done is not None:
        sheet.add(**row, **done[0], seconds=done[1])


def _masked(mix: Callable[..., jax.Array], segment_ids: jax.Array, prefix_ids: jax.Array | None, *parts: Any) -> Any:
    return mix(segment_mask(segment_ids, prefix_ids), *parts)


def _float64(x: Any) -> np.ndarray:
    return np.asarray(jnp.asarray(x).astype(jnp.float32), np.float64)
