"""Requests into slots: all at once, or as slots become free."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from jaxrlhf.generation.settings import SamplingSettings
from jaxrlhf.generation.slots import Answers, Prefilled, Requests, Slots, collect, no_answers, over_mesh, rows_over_mesh
from jaxrlhf.generation.words import mark_words
from jaxrlhf.sharding.mesh import BATCH_AXES, constrain
from jaxrlhf.types import KVCache, Model, Params


def make_requests(key: jax.Array, row_ids: jax.Array, settings: SamplingSettings, *, answers: int) -> Requests:
    """K requests for each prompt.

    Args:
        key: typed key, consumed.
        row_ids: [B] int32, see `PromptBatch`.
        settings: of B * K rows, as `per_row` returns them.
        answers: K. Static.
    """
    by_row = jax.vmap(jax.random.fold_in, (None, 0))(key, row_ids)
    by_answer = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))(by_row, jnp.arange(answers))
    return rows_over_mesh(Requests(keys=by_answer.reshape(-1), settings=settings))


def seat_all(model: Model, params: Params, store: Prefilled, requests: Requests, *, columns: int, room: int) -> Slots:
    """Gives every request a slot of its own; those of padding rows have ended.

    Args:
        model: the policy.
        params: prepared parameters.
        store: the prompts.
        requests: K to each prompt.
        columns: of the slots' cache, S. Static.
        room: length R of the answers. Static.
    """
    rows = requests.keys.shape[0]
    answers = rows // store.tokens.shape[0]
    missing = columns - store.cache.columns

    def widen(part: jax.Array) -> jax.Array:
        # In this order, since what is between may be in memory too.
        part = jnp.pad(part, [(0, 0)] * (part.ndim - 2) + [(0, missing), (0, 0)])
        return jnp.repeat(part, answers, axis=part.ndim - 4) if answers > 1 else part

    tokens, there = (jnp.repeat(part, answers, axis=0) for part in (store.tokens, store.there))
    cache = KVCache(
        keys=jax.tree.map(widen, store.cache.keys),
        values=jax.tree.map(widen, store.cache.values),
        start=jnp.repeat(store.cache.start, answers),
        index=store.cache.index,
    )
    slots = Slots(
        request=jnp.arange(rows, dtype=jnp.int32),
        cache=cache,
        token=tokens[:, -1],
        going=there[:, -1],
        keys=requests.keys,
        words=mark_words(requests.settings, tokens, there, _vocabulary(model, params)),
        settings=requests.settings,
        answers=no_answers(rows, room),
    )
    return over_mesh(slots)


def no_slots(model: Model, params: Params, requests: Requests, *, slots: int, room: int) -> Slots:
    """B idle slots, whose cache has a single column: `columns.make_room` makes it as long as the first prompts need.

    Args:
        model: the policy.
        params: prepared parameters.
        requests: what will be asked for.
        slots: B. Static.
        room: length R of the answers. Static.
    """
    empty = Slots(
        request=jnp.full((slots,), requests.keys.shape[0], jnp.int32),
        cache=model.init_cache(slots, 1),
        token=jnp.zeros((slots,), jnp.int32),
        going=jnp.zeros((slots,), bool),
        keys=requests.keys[jnp.zeros(slots, jnp.int32)],
        words=constrain(jnp.zeros((slots, _vocabulary(model, params)), jnp.uint8), BATCH_AXES, None),
        settings=jax.tree.map(lambda own: jnp.repeat(own[:1], slots, axis=0), requests.settings),
        answers=no_answers(slots, room),
    )
    return over_mesh(empty)


def seat(
    slots: Slots,
    result: Answers,
    store: Prefilled,
    requests: Requests,
    sources: jax.Array,
    targets: jax.Array,
    numbers: jax.Array,
) -> tuple[Slots, Answers]:
    """Gives idle slots new requests, after what they hold is written to the result.

    Args:
        slots: B slots whose cache has as many columns behind `index` as the store's.
        result: answers to all requests.
        store: prompts.
        requests: all requests.
        sources: [B] int32, rows of the store, one for each request.
        targets: [B] int32, the slots that take them; B where there is no further request.
        numbers: [B] int32, the requests.
    """
    result = collect(result, slots.request, slots.answers)
    placed = jnp.sum(targets < slots.going.shape[0])

    def copy(i: jax.Array, parts: tuple) -> tuple:
        def one(old: jax.Array, kept: jax.Array) -> jax.Array:
            batch = old.ndim - 4
            # Not a dynamic slice, for which every device of a mesh would gather the whole store.
            row = jnp.take(kept, sources[i][None], axis=batch).astype(old.dtype)
            # The whole row is written: what a former answer left, a NaN say, would not vanish with a weight of 0.
            clear = jnp.zeros((*old.shape[:batch], 1, *old.shape[batch + 1 :]), old.dtype)
            before = slots.cache.index - store.cache.columns
            fresh = jax.lax.dynamic_update_slice_in_dim(clear, row, before, axis=old.ndim - 2)
            return jax.lax.dynamic_update_slice_in_dim(old, fresh, targets[i], axis=batch)

        return jax.tree.map(one, parts, (store.cache.keys, store.cache.values))

    keys, values = jax.lax.fori_loop(0, placed, copy, (slots.cache.keys, slots.cache.values))

    def put(old: jax.Array, new: jax.Array) -> jax.Array:
        return old.at[targets].set(new, mode="drop")

    own = jax.tree.map(lambda all_: all_[numbers], requests)
    tokens, there = store.tokens[sources], store.there[sources]
    held = (store.cache.index - store.cache.start)[sources]
    fresh = jnp.zeros(targets.shape, jnp.int32)
    answers = dataclasses.replace(
        slots.answers,
        count=put(slots.answers.count, fresh),
        terminated=put(slots.answers.terminated, fresh.astype(bool)),
    )
    slots = Slots(
        request=put(slots.request, numbers),
        cache=KVCache(
            keys=keys,
            values=values,
            start=put(slots.cache.start, slots.cache.index - held),
            index=slots.cache.index,
        ),
        token=put(slots.token, tokens[:, -1]),
        going=put(slots.going, there[:, -1]),
        keys=put(slots.keys, own.keys),
        words=put(slots.words, mark_words(own.settings, tokens, there, slots.words.shape[1])),
        settings=jax.tree.map(put, slots.settings, own.settings),
        answers=answers,
    )
    return over_mesh(slots), result


def _vocabulary(model: Model, params: Params) -> int:
    head = model.head(params)
    return head.weight.shape[head.vocab_axis]
