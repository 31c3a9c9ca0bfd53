"""The loop of the sampler: steps that draw a token for every slot."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrlhf.generation.draw import DrawMethod, Drawn, draw
from jaxrlhf.generation.slots import Answers, Slots, over_mesh
from jaxrlhf.generation.words import see
from jaxrlhf.kernels.logits import logits_of
from jaxrlhf.sharding.mesh import BATCH_AXES, constrain
from jaxrlhf.types import Model, Params


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Seen:
    """What the host looks at between two chunks.

    Attributes:
        index: int32 scalar, `KVCache.index`.
        held: int32 scalar, tokens in the cache of the slot that holds most of those that go on; 0 if none does.
        going: [B] bool, `Slots.going`.
        count: [B] int32, `Answers.count`.
        steps: int32 scalar, steps of the chunk.
    """

    index: jax.Array
    held: jax.Array
    going: jax.Array
    count: jax.Array
    steps: jax.Array


class _Loop(NamedTuple):
    """State of a chunk after `step` steps; `drawn` holds tokens and their two log-probabilities, [B, C] each."""

    step: jax.Array
    slots: Slots
    drawn: tuple[jax.Array, ...]


def advance(
    model: Model,
    params: Params,
    slots: Slots,
    limit: jax.Array,
    leave: jax.Array,
    *,
    chunk: int,
    method: DrawMethod = "gumbel",
) -> tuple[Slots, Seen]:
    """Draws tokens until no more than `leave` slots go on, `limit` steps at most.

    A row's answer is a function of its key, its settings and its prompt: it does not depend on its neighbours, on its
    slot, or on how rows are spread over devices.

    Args:
        model: the policy.
        params: prepared parameters.
        slots: B slots whose cache has room for `limit` tokens.
        limit: int32 scalar, steps, at most `chunk`.
        leave: int32 scalar.
        chunk: the most steps, C. Static.
        method: how tokens are drawn. Static.
    """

    def body(loop: _Loop) -> _Loop:
        slots, drawn = _step(model, params, loop.slots, method)
        new = zip(loop.drawn, drawn, strict=True)
        columns = tuple(jax.lax.dynamic_update_slice(old, part[:, None], (0, loop.step)) for old, part in new)
        return _Loop(loop.step + 1, slots, columns)

    def empty(dtype: Any) -> jax.Array:
        return constrain(jnp.zeros((slots.going.shape[0], chunk), dtype), BATCH_AXES, None)

    first = _Loop(jnp.zeros((), jnp.int32), slots, (empty(jnp.int32), empty(jnp.float32), empty(jnp.float32)))
    end = jax.lax.while_loop(lambda loop: (loop.step < limit) & (jnp.sum(loop.slots.going) > leave), body, first)
    answers = _append(end.slots.answers, end.drawn, slots.answers.count)
    cache, going = end.slots.cache, end.slots.going
    seen = Seen(
        index=cache.index,
        held=jnp.max(jnp.where(going, cache.index - cache.start, 0)),
        going=going,
        count=answers.count,
        steps=end.step,
    )
    seen = jax.tree.map(lambda leaf: constrain(leaf, *(None,) * leaf.ndim), seen)  # every host reads it
    return over_mesh(dataclasses.replace(end.slots, answers=answers)), seen


def _step(model: Model, params: Params, slots: Slots, method: DrawMethod) -> tuple[Slots, Drawn]:
    """Reads the last token of every slot and draws the next; what slots that have ended draw is not counted."""
    settings, answers, cache = slots.settings, slots.answers, slots.cache
    output = model.apply(
        params,
        slots.token[:, None],
        positions=(cache.index - cache.start)[:, None],
        segment_ids=jnp.ones((slots.token.shape[0], 1), jnp.int32),
        cache=cache,
    )
    assert output.cache is not None and settings.max_new_tokens is not None  # see `settings.per_row`
    keys = jax.vmap(jax.random.fold_in)(slots.keys, answers.count)
    logits = logits_of(output.hidden[:, -1], model.head(params))
    drawn = draw(logits, keys, slots.words, answers.count, settings, method=method)
    count = answers.count + slots.going
    ended = slots.going & jnp.any(drawn.tokens[:, None] == settings.eos_ids, axis=1)
    answers = dataclasses.replace(answers, count=count, terminated=answers.terminated | ended)
    slots = dataclasses.replace(
        slots,
        cache=output.cache,
        token=drawn.tokens,
        going=slots.going & ~ended & (count < settings.max_new_tokens),
        words=see(slots.words, drawn.tokens, slots.going),
        answers=answers,
    )
    return slots, drawn


def _append(answers: Answers, drawn: tuple[jax.Array, ...], before: jax.Array) -> Answers:
    """The answers with the tokens of a chunk, [B, C], behind those that they had `before`, [B], up to their count."""
    numbers = jnp.arange(answers.tokens.shape[1])[None, :]
    # A row's tokens of this chunk are its first ones there, since it goes on until it ends.
    column = numbers - before[:, None]
    fresh = (column >= 0) & (numbers < answers.count[:, None])
    column = jnp.clip(column, 0, drawn[0].shape[1] - 1)

    def append(old: jax.Array, new: jax.Array) -> jax.Array:
        return jnp.where(fresh, jnp.take_along_axis(new, column, axis=1), old)

    tokens, logprobs, sampling_logprobs = drawn
    return dataclasses.replace(
        answers,
        tokens=append(answers.tokens, tokens),
        logprobs=append(answers.logprobs, logprobs),
        sampling_logprobs=append(answers.sampling_logprobs, sampling_logprobs),
    )
