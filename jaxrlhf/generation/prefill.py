"""Prompts into a cache, all their tokens at once or in parts."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from jaxrlhf.generation.slots import Prefilled
from jaxrlhf.types import KVCache, Model, Params, PromptBatch


def prefill(model: Model, params: Params, prompts: PromptBatch, *, chunk: int = 0) -> Prefilled:
    """Computes keys and values of all tokens of the prompts but the last, which the first step will read.

    Args:
        model: the policy.
        params: prepared parameters, see `Model`.
        prompts: B prompts of W columns, the padding of each on one side or both.
        chunk: tokens that go through the model at a time, which bounds memory; 0 means all. Static.
    """
    tokens, there = to_the_right(prompts)
    batch, width = tokens.shape
    chunk = min(chunk, width - 1) if chunk else width - 1
    missing = -(width - 1) % chunk
    tokens, there = (jnp.pad(part, ((0, 0), (missing, 0))) for part in (tokens, there))
    segments, last = there.astype(jnp.int32), width + missing - 1
    start = jnp.sum(~there, axis=1, dtype=jnp.int32)

    def run(number: jax.Array | int, cache: KVCache) -> KVCache:
        def part(x: jax.Array) -> jax.Array:
            return jax.lax.dynamic_slice_in_dim(x, number * chunk, chunk, axis=1)

        positions = jnp.maximum(number * chunk + jnp.arange(chunk)[None, :] - start[:, None], 0)
        output = model.apply(params, part(tokens), positions=positions, segment_ids=part(segments), cache=cache)
        assert output.cache is not None
        return output.cache

    cache = dataclasses.replace(model.init_cache(batch, last), start=start)
    if chunk == last:
        cache = run(0, cache)
    else:
        first = jnp.min(start) // chunk  # chunks before it are padding in every row
        cache = dataclasses.replace(cache, index=first * chunk)
        cache = jax.lax.fori_loop(first, last // chunk, run, cache)
        cache = dataclasses.replace(cache, index=jnp.full((), last, jnp.int32))
    return Prefilled(cache=cache, tokens=tokens, there=there)


def to_the_right(prompts: PromptBatch) -> tuple[jax.Array, jax.Array]:
    """Prompts with the padding of each row on the left: tokens [B, W], and which of them are there; W is 2 at least."""
    tokens, there = prompts.tokens, prompts.segment_ids != 0
    if tokens.shape[1] < 2:
        tokens, there = (jnp.pad(part, ((0, 0), (1, 0))) for part in (tokens, there))
    width = tokens.shape[1]
    after = jnp.argmax(jnp.flip(there, axis=1), axis=1)  # padding at the end of each row
    column = (jnp.arange(width)[None, :] - after[:, None]) % width
    return jnp.take_along_axis(tokens, column, axis=1), jnp.take_along_axis(there, column, axis=1)
