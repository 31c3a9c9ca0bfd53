"""`Sampler`: answers to prompts. The host seats requests and looks between chunks; everything else is compiled."""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrlhf.config_checks import check, not_negative, positive
from jaxrlhf.generation.columns import bucket
from jaxrlhf.generation.decode import advance
from jaxrlhf.generation.desk import Desk, Listener, Seat
from jaxrlhf.generation.draw import DrawMethod
from jaxrlhf.generation.prefill import prefill, to_the_right
from jaxrlhf.generation.seating import make_requests, no_slots, seat_all
from jaxrlhf.generation.settings import SamplingSettings, per_row
from jaxrlhf.generation.slots import Answers, Prefilled, Requests, as_samples, no_answers
from jaxrlhf.sharding.place import to_host
from jaxrlhf.types import Model, Params, PromptBatch, Samples

_NARROWEST = 16  # columns of prompts that are prefilled together
_PATIENCE = 16  # a chunk ends for waiting requests when one slot in so many is free


class Prepared(NamedTuple):
    """Parameters in the form that the programs read, see `Sampler.prepare`."""

    params: Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Shape:
    """What is compiled into a sampler, see `Sampler`."""

    max_new_tokens: int
    answers: int
    slots: int | None
    chunk: int
    prefill_chunk: int
    draw: DrawMethod

    def __post_init__(self) -> None:
        ranges = positive(self, "max_new_tokens", "answers", "slots", "chunk")
        check(self, *ranges, *not_negative(self, "prefill_chunk"))


class Sampler:
    """Draws answers to prompts; holds the compiled programs. `steps` are those that the last call took.

    An answer is a function of the key, its prompt's `row_id`, its number, its prompt and its settings: it does not
    depend on its neighbours, on padding, on slots, or on how rows are spread over devices. Changing parameters,
    prompts, settings or the key compiles nothing; a program is compiled for each number of prompts and each width of
    them that it is given, and for a few lengths of the cache (`columns.bucket`).

    With fewer slots than answers, a slot whose answer has ended takes the next request: the rows of a step stay busy
    while answers end at different times.
    """

    def __init__(
        self,
        model: Model,
        *,
        max_new_tokens: int,
        answers: int = 1,
        slots: int | None = None,
        chunk: int = 64,
        prefill_chunk: int = 0,
        draw: DrawMethod = "gumbel",
        out_shardings: Any = None,
    ):
        """Compiles nothing yet.

        Args:
            model: the policy.
            max_new_tokens: the most tokens of an answer, R.
            answers: answers to each prompt, K. A prompt is prefilled once.
            slots: answers that are decoded at once; None means all.
            chunk: steps between two looks of the host, at most.
            prefill_chunk: tokens of a prompt that go through the model at once, which bounds memory; 0 means all.
            draw: how tokens are drawn, see `draw.draw`.
            out_shardings: where the answers go; None leaves it to the compiler.

        Raises:
            ValueError: if a number is out of its range, or the draw unknown.
        """
        self._shape = _Shape(
            max_new_tokens=max_new_tokens,
            answers=answers,
            slots=slots,
            chunk=min(chunk, max_new_tokens),
            prefill_chunk=prefill_chunk,
            draw=draw,
        )
        self._prepare = jax.jit(model.prepare)
        self._requests = jax.jit(functools.partial(make_requests, answers=answers))
        self._lengths = jax.jit(lambda prompts: jnp.sum(prompts.segment_ids != 0, axis=1))
        self._prefill = jax.jit(functools.partial(prefill, model, chunk=prefill_chunk))
        self._seat_all = jax.jit(functools.partial(seat_all, model, room=max_new_tokens), static_argnames="columns")
        self._no_slots = jax.jit(functools.partial(no_slots, model, room=max_new_tokens), static_argnames="slots")
        self._some = jax.jit(_some, static_argnums=2)
        self._no_answers = jax.jit(no_answers, static_argnums=(0, 1))
        step = functools.partial(advance, model, chunk=self._shape.chunk, method=draw)
        self._advance = jax.jit(step, donate_argnums=1)
        self._finish = jax.jit(functools.partial(_finish, answers), out_shardings=out_shardings)
        self.steps = 0

    def prepare(self, params: Params) -> Prepared:
        """Parameters for several calls, which would else make this copy of them at each; it stays beside them."""
        return Prepared(self._prepare(params))

    def __call__(
        self,
        params: Params | Prepared,
        prompts: PromptBatch,
        key: jax.Array,
        settings: SamplingSettings | None = None,
        *,
        listen: Listener | None = None,
    ) -> Samples:
        """Answers prompts.

        Args:
            params: the policy's parameters, or what `prepare` made of them.
            prompts: `PromptBatch` of B prompts. A row without tokens gets no answer.
            key: typed key, consumed.
            settings: `SamplingSettings` for all answers, or with arrays of B * K rows; None means the defaults.
            listen: what looks at answers while they are drawn, and may end them.

        Returns:
            `Samples` of B * K rows, the answers to a prompt next to each other.

        Raises:
            TypeError: if the key is not a typed one, or a setting of another type.
            ValueError: if a setting is out of its range.
        """
        if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
            raise TypeError(f"key is an array of {key.dtype}; give a typed key, as jax.random.key makes them")
        rows = prompts.tokens.shape[0] * self._shape.answers
        settings = per_row(SamplingSettings() if settings is None else settings, rows, self._shape.max_new_tokens)
        requests = self._requests(key, prompts.row_ids, settings)
        prepared, slots = params if isinstance(params, Prepared) else self.prepare(params), self._shape.slots
        if slots is None or slots >= rows:
            answers = self._together(prepared.params, prompts, requests, listen)
        else:
            answers = self._in_turns(prepared.params, prompts, requests, listen, slots)
        return self._finish(answers, prompts)

    def _together(self, params: Params, prompts: PromptBatch, requests: Requests, listen: Listener | None) -> Answers:
        shape, store = self._shape, self._prefill(params, prompts)
        index = store.cache.columns
        most = index + shape.max_new_tokens
        slots = self._seat_all(params, store, requests, columns=bucket(index + shape.chunk, most))
        del store  # the slots hold all of it
        desk = Desk(slots, chunk=shape.chunk, most=most, listen=listen)
        del slots  # so that the desk can free them
        while desk.going:
            desk.advance(functools.partial(self._advance, params))
        self.steps = desk.steps
        return desk.answers

    def _in_turns(
        self, params: Params, prompts: PromptBatch, requests: Requests, listen: Listener | None, count: int
    ) -> Answers:
        shape, lengths = self._shape, to_host(self._lengths(prompts))
        width = prompts.tokens.shape[1]
        # A slot holds a prompt and its answer; a store, prompts and up to a part of padding, which may be more.
        most = width + max(shape.max_new_tokens, min(shape.prefill_chunk, width)) + shape.chunk
        slots = self._no_slots(params, requests, slots=count)
        desk = Desk(slots, chunk=shape.chunk, most=most, listen=listen)
        del slots
        result, store = self._no_answers(requests.keys.shape[0], shape.max_new_tokens), None
        waiting = collections.deque(np.flatnonzero(lengths).tolist())
        group = min(-(-count // shape.answers), len(lengths))  # prompts that are prefilled together
        stored: collections.deque[Seat] = collections.deque()
        while waiting or stored or desk.going:
            while (free := len(desk.idle)) and (waiting or stored):
                if not stored:
                    taken = [waiting.popleft() for _ in range(min(len(waiting), group))]
                    store = self._store(params, prompts, taken, group, int(lengths[taken].max()))
                    stored.extend(self._seats(taken))
                assert store is not None
                seats = [stored.popleft() for _ in range(min(free, len(stored)))]
                result = desk.seat(result, store, requests, seats)
            leave = count - max(1, count // _PATIENCE) if waiting or stored else 0
            desk.advance(functools.partial(self._advance, params), leave=leave)
        self.steps = desk.steps
        return desk.collect(result)

    def _store(self, params: Params, prompts: PromptBatch, taken: Sequence[int], rows: int, longest: int) -> Prefilled:
        """Prefills some prompts, in as few columns as hold the longest, and `rows` rows whatever their number."""
        width = bucket(longest, prompts.tokens.shape[1], _NARROWEST)
        numbers = np.full(rows, prompts.tokens.shape[0], np.int32)
        numbers[: len(taken)] = taken
        return self._prefill(params, self._some(prompts, numbers, width))

    def _seats(self, taken: Sequence[int]) -> Iterator[Seat]:
        """The requests of prompts that were prefilled."""
        for row, prompt in enumerate(taken):
            for answer in range(self._shape.answers):
                yield Seat(row, prompt * self._shape.answers + answer)


def _some(prompts: PromptBatch, numbers: jax.Array, width: int) -> PromptBatch:
    """Some of the prompts, the last `width` columns of them; a number that there is not gives padding."""
    tokens, there = to_the_right(prompts)

    def take(part: jax.Array) -> jax.Array:
        return jnp.take(part[:, part.shape[1] - width :], numbers, axis=0, mode="fill", fill_value=0)

    return PromptBatch(tokens=take(tokens), segment_ids=take(there.astype(jnp.int32)), row_ids=numbers)


def _finish(answers: int, written: Answers, prompts: PromptBatch) -> Samples:
    asked = jnp.repeat(jnp.any(prompts.segment_ids != 0, axis=1), answers)
    return as_samples(written, asked)
