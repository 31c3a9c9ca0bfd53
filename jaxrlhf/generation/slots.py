"""What the sampler holds on the devices: requests that wait, slots that decode side by side, answers that are written.

A request is one answer to be drawn: the K requests of a prompt are neighbours, and a request's number is its row in the
result. A slot takes one request after another.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxrlhf.generation.settings import SamplingSettings
from jaxrlhf.sharding.mesh import BATCH_AXES, constrain
from jaxrlhf.types import KVCache, Samples


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Requests:
    """What is asked for; N = prompts * K rows.

    Attributes:
        keys: [N] typed keys, a function of the prompt's row id and the answer's number.
        settings: `SamplingSettings` with arrays of N rows.
    """

    keys: jax.Array
    settings: SamplingSettings


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Answers:
    """Answers as far as they are drawn; entries from `count` on mean nothing.

    Attributes:
        tokens: [N, R] int32.
        logprobs: [N, R] float32, see `Samples`.
        sampling_logprobs: [N, R] float32, see `Samples`.
        count: [N] int32, tokens drawn.
        terminated: [N] bool, see `Samples`.
    """

    tokens: jax.Array
    logprobs: jax.Array
    sampling_logprobs: jax.Array
    count: jax.Array
    terminated: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Prefilled:
    """Prompts whose tokens, but for the last, are in a cache; B rows of W tokens, padded on the left.

    Attributes:
        cache: of W - 1 columns.
        tokens: [B, W] int32.
        there: [B, W] bool, False at padding.
    """

    cache: KVCache
    tokens: jax.Array
    there: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Slots:
    """B requests in the course of being answered.

    Attributes:
        request: [B] int32, the request of each; that of an idle slot is no row of the result.
        cache: of S columns: the prompt and the answer, but for the last token.
        token: [B] int32, the last token, which the cache does not hold yet.
        going: [B] bool, False once an answer has ended.
        keys: [B] typed keys of the requests.
        words: [B, V] uint8, see `words.mark_words`.
        settings: `SamplingSettings` of the requests.
        answers: what they have of it, B rows.
    """

    request: jax.Array
    cache: KVCache
    token: jax.Array
    going: jax.Array
    keys: jax.Array
    words: jax.Array
    settings: SamplingSettings
    answers: Answers


def no_answers(rows: int, length: int) -> Answers:
    """Answers of no tokens to N requests, R tokens long at most."""
    answers = Answers(
        tokens=jnp.zeros((rows, length), jnp.int32),
        logprobs=jnp.zeros((rows, length), jnp.float32),
        sampling_logprobs=jnp.zeros((rows, length), jnp.float32),
        count=jnp.zeros((rows,), jnp.int32),
        terminated=jnp.zeros((rows,), bool),
    )
    return rows_over_mesh(answers)


def rows_over_mesh(tree: Any) -> Any:
    """A pytree of arrays [B, ...] with rows divided over the mesh, if one is set.

    Said of everything that leaves a program, so that the next call of it finds its arrays where the last one did: else
    it would be compiled again.
    """
    return jax.tree.map(lambda leaf: constrain(leaf, BATCH_AXES, *(None,) * (leaf.ndim - 1)), tree)


def over_mesh(slots: Slots) -> Slots:
    """The slots divided over the mesh, if one is set: rows, and heads of the cache; see `rows_over_mesh`."""
    cache = slots.cache

    def heads(leaf: jax.Array) -> jax.Array:
        return constrain(leaf, *(None,) * (leaf.ndim - 4), BATCH_AXES, "tensor", None, None)

    rest = {field.name: getattr(slots, field.name) for field in dataclasses.fields(slots) if field.name != "cache"}
    cache = KVCache(
        keys=jax.tree.map(heads, cache.keys),
        values=jax.tree.map(heads, cache.values),
        start=rows_over_mesh(cache.start),
        index=constrain(cache.index),
    )
    return Slots(cache=cache, **rows_over_mesh(rest))


def collect(result: Answers, request: jax.Array, answers: Answers) -> Answers:
    """The result with the answers of slots written into the rows of their requests, [B] int32."""
    written = jax.tree.map(lambda all_, own: all_.at[request].set(own, mode="drop"), result, answers)
    return rows_over_mesh(written)


def cut(going: jax.Array, answers: Answers, counts: jax.Array) -> tuple[jax.Array, Answers]:
    """Ends answers at fewer tokens than were drawn.

    Args:
        going: [B] bool, see `Slots`.
        answers: of B slots.
        counts: [B] int32, tokens to keep; negative where the answer goes on as it is.
    """
    ends = counts >= 0
    answers = dataclasses.replace(
        answers, count=jnp.where(ends, counts, answers.count), terminated=answers.terminated | ends
    )
    return rows_over_mesh((going & ~ends, answers))


def as_samples(answers: Answers, asked: jax.Array) -> Samples:
    """Finished answers, zeros after their ends; those of requests that were never made (`asked`) count as ended."""
    mask = jnp.arange(answers.tokens.shape[1])[None, :] < answers.count[:, None]

    def kept(values: jax.Array) -> jax.Array:
        return jnp.where(mask, values, jnp.zeros_like(values))

    return Samples(
        tokens=kept(answers.tokens),
        mask=mask,
        terminated=answers.terminated | ~asked,
        logprobs=kept(answers.logprobs),
        sampling_logprobs=kept(answers.sampling_logprobs),
    )
