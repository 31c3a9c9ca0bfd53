"""The compiled sampler: one prefill of the prompts, then a loop that draws a token for every row."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrlhf.generation.sampling import SamplingSettings, draw
from jaxrlhf.kernels.logits import logits_of
from jaxrlhf.ops.masked import positions_of
from jaxrlhf.types import KVCache, Model, Params, PromptBatch, Samples


class _Loop(NamedTuple):
    """State of the loop after `step` tokens were drawn; [B] and [B, R] as in `Samples`."""

    step: jax.Array
    cache: KVCache
    token: jax.Array
    done: jax.Array
    tokens: jax.Array
    mask: jax.Array
    logprobs: jax.Array
    sampling_logprobs: jax.Array


def generate(
    model: Model,
    params: Params,
    prompts: PromptBatch,
    key: jax.Array,
    settings: SamplingSettings,
    *,
    max_new_tokens: int,
    answers: int = 1,
) -> Samples:
    """Samples `answers` answers to each prompt. A prompt is prefilled once, whatever their number.

    A row's answer is a function of the key, its `row_id`, the answer's number and the prompt: it does not depend on its
    neighbours, on padding, or on how rows are spread over devices.

    Args:
        model: the policy.
        params: its parameters.
        prompts: `PromptBatch` of B prompts, padded on the left.
        key: typed key, consumed.
        settings: `SamplingSettings` of B * answers rows.
        max_new_tokens: length R of the answers, positive. Static.
        answers: answers a prompt, K. Static.

    Returns:
        `Samples` of B * K rows, the answers to a prompt next to each other.
    """
    batch, width = prompts.tokens.shape
    rows = batch * answers
    keys = _row_keys(key, prompts.row_ids, answers)
    lengths = jnp.repeat(jnp.sum(prompts.segment_ids != 0, axis=1), answers)

    prefill = model.apply(
        params,
        prompts.tokens,
        positions=positions_of(prompts.segment_ids),
        segment_ids=prompts.segment_ids,
        cache=model.init_cache(batch, width + max_new_tokens - 1),
    )
    assert prefill.cache is not None
    cache = _repeat_rows(prefill.cache, answers)
    last = jnp.repeat(prefill.hidden[:, -1], answers, axis=0)

    def put(loop: _Loop, cache: KVCache, hidden: jax.Array) -> _Loop:
        """Draws the next token of every row from its hidden state [rows, D] and writes it down."""
        step_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, loop.step)
        token, logp, sampling_logp = draw(logits_of(hidden, model.head(params)), step_keys, settings)
        going = ~loop.done
        ended = jnp.any(token[:, None] == settings.eos_ids[None, :], axis=1)

        def write(array: jax.Array, column: jax.Array) -> jax.Array:
            column = jnp.where(going, column, jnp.zeros_like(column))
            return jax.lax.dynamic_update_slice(array, column[:, None], (0, loop.step))

        return _Loop(
            step=loop.step + 1,
            cache=cache,
            token=token,
            done=loop.done | ended,
            tokens=write(loop.tokens, token),
            mask=write(loop.mask, going),
            logprobs=write(loop.logprobs, logp),
            sampling_logprobs=write(loop.sampling_logprobs, sampling_logp),
        )

    def body(loop: _Loop) -> _Loop:
        output = model.apply(
            params,
            loop.token[:, None],
            positions=(lengths + loop.step - 1)[:, None],
            segment_ids=jnp.ones((rows, 1), jnp.int32),
            cache=loop.cache,
        )
        assert output.cache is not None
        return put(loop, output.cache, output.hidden[:, -1])

    empty = _empty_loop(max_new_tokens, cache, done=lengths == 0)  # padding rows have nothing to answer
    end = jax.lax.while_loop(
        lambda loop: (loop.step < max_new_tokens) & ~jnp.all(loop.done), body, put(empty, cache, last)
    )
    return Samples(
        tokens=end.tokens,
        mask=end.mask,
        terminated=end.done,
        logprobs=end.logprobs,
        sampling_logprobs=end.sampling_logprobs,
    )


def _empty_loop(length: int, cache: KVCache, done: jax.Array) -> _Loop:
    rows = done.shape[0]
    return _Loop(
        step=jnp.zeros((), jnp.int32),
        cache=cache,
        token=jnp.zeros(rows, jnp.int32),
        done=done,
        tokens=jnp.zeros((rows, length), jnp.int32),
        mask=jnp.zeros((rows, length), bool),
        logprobs=jnp.zeros((rows, length), jnp.float32),
        sampling_logprobs=jnp.zeros((rows, length), jnp.float32),
    )


def _row_keys(key: jax.Array, row_ids: jax.Array, answers: int) -> jax.Array:
    """[B * K] keys, a function of the row's id and the answer's number."""
    by_row = jax.vmap(jax.random.fold_in, (None, 0))(key, row_ids)
    by_answer = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))(by_row, jnp.arange(answers))
    return by_answer.reshape(-1)


def _repeat_rows(cache: KVCache, times: int) -> KVCache:
    if times == 1:
        return cache
    return KVCache(
        keys=jnp.repeat(cache.keys, times, axis=1),
        values=jnp.repeat(cache.values, times, axis=1),
        segment_ids=jnp.repeat(cache.segment_ids, times, axis=0),
        index=cache.index,
    )
