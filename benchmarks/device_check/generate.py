"""The section `generate`: the library's sampler at several batch sizes, against the time that reading memory takes."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.device_check.ceilings import Ceilings, of_copy
from benchmarks.device_check.compiled import peak_bytes
from benchmarks.device_check.contest import Contestant, Runner, hold
from benchmarks.device_check.models import cache_bytes, parameter_count, prompts, random_params, size_of
from benchmarks.device_check.shapes import Sampling, Shapes
from benchmarks.device_check.sheet import Row, Sheet
from benchmarks.device_check.units import decode_bytes
from jaxrlhf.generation.sampler import Sampler
from jaxrlhf.models.config import ComputeConfig
from jaxrlhf.models.decoder import make_model
from jaxrlhf.types import Params

BYTES = 2
"""Of a bfloat16 number: what weights and cache take at least, however a contestant holds them."""


def measure(sheet: Sheet, shapes: Shapes, ceilings: Ceilings | None) -> None:
    """Writes rows for parameters as trainers hold them and in bfloat16, at each batch size."""
    sampling = shapes.sampling
    params = random_params(sampling.model)
    narrow = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), tree))(params)
    for batch in sampling.batches:
        hold(
            sheet,
            [
                _contestant(sampling, batch, params, "bfloat16, weights float32", ceilings),
                _contestant(sampling, batch, narrow, "bfloat16", ceilings),
            ],
            rounds=3,
        )


def row_of(sampling: Sampling, batch: int, dtype: str, implementation: str) -> Row:
    """What a row says of sampling."""
    shape = f"{size_of(sampling.model)}, {batch} x ({sampling.prompt} + {sampling.new})"
    return {"name": "sample", "shape": shape, "dtype": dtype, "implementation": implementation}


def worth_of(sampling: Sampling, batch: int, ceilings: Ceilings | None) -> Callable[[float], Row]:
    """Seconds, those of the prompts' forward pass among them, to new tokens/s and the bandwidth that decoding needs."""
    weights = BYTES * parameter_count(sampling.model)
    moved = decode_bytes(weights, cache_bytes(sampling.model, BYTES), batch, sampling.prompt, sampling.new)
    tokens = batch * sampling.new
    return lambda seconds: {"tokens_per_s": tokens / seconds, **of_copy(moved, seconds, ceilings)}


def _contestant(sampling: Sampling, batch: int, params: Params, dtype: str, ceilings: Ceilings | None) -> Contestant:
    def prepare() -> Runner:
        model = make_model(sampling.model, ComputeConfig(dtype="bfloat16"))
        sample = Sampler(model, max_new_tokens=sampling.new)
        asked, keys = prompts(sampling.model, batch, sampling.prompt), itertools.count()

        def start() -> Any:
            return sample(params, asked, jax.random.key(next(keys)))

        return Runner(start, jax.block_until_ready, peak=peak_bytes)

    row = row_of(sampling, batch, dtype, "jaxrlhf")
    return Contestant(row=row, prepare=prepare, worth=worth_of(sampling, batch, ceilings))
