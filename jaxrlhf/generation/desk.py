"""The slots and what the host knows of them: it seats requests, runs chunks, makes room, and lets a listener look."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from jaxrlhf.generation.columns import make_room
from jaxrlhf.generation.decode import Seen
from jaxrlhf.generation.seating import seat
from jaxrlhf.generation.slots import Answers, Prefilled, Requests, Slots, collect, cut
from jaxrlhf.sharding.place import to_host

Listener = Callable[[int, np.ndarray], int | None]
"""(row of an answer, all its tokens so far) -> how many of them to keep, which ends the answer; None lets it go on.

Called between chunks for every answer that has new tokens; in all processes, which must say the same.
"""

AdvanceFn = Callable[[Slots, np.int32, np.int32], tuple[Slots, Seen]]
"""(slots, limit, leave) -> (slots, what the host may see), see `decode.advance`; the slots are given away."""


class Seat(NamedTuple):
    """Where a request comes from.

    Attributes:
        row: of the store that has its prompt.
        request: its number.
    """

    row: int
    request: int


_seat = jax.jit(seat, donate_argnums=(0, 1))
_cut = jax.jit(cut, donate_argnums=(0, 1))
_collect = jax.jit(collect, donate_argnums=0)


class Desk:
    """Slots that decode side by side, between two chunks.

    Attributes:
        steps: steps that were taken.
    """

    def __init__(self, slots: Slots, *, chunk: int, most: int, listen: Listener | None = None):
        """Takes the slots over.

        Args:
            slots: B slots.
            chunk: steps between two looks, at most.
            most: columns that the cache may need.
            listen: see `Listener`.
        """
        self._slots, self._chunk, self._most, self._listen = slots, chunk, most, listen
        self._request, self._going, index = map(np.array, to_host((slots.request, slots.going, slots.cache.index)))
        # `_held`: no fewer columns before the index than slots which go on hold tokens in; as many after each chunk.
        self._index = self._held = int(index)
        self._heard = np.zeros(len(self._going), np.int32)
        self.steps = 0

    @property
    def going(self) -> bool:
        """Whether any answer goes on."""
        return bool(self._going.any())

    @property
    def idle(self) -> np.ndarray:
        """The slots that are free."""
        return np.flatnonzero(~self._going)

    @property
    def answers(self) -> Answers:
        """What the slots have written."""
        return self._slots.answers

    def seat(self, result: Answers, store: Prefilled, requests: Requests, seats: Sequence[Seat]) -> Answers:
        """Gives requests to free slots, and writes what these hold to the result, which is given away and returned.

        Args:
            result: answers to all requests.
            store: prompts.
            requests: all requests.
            seats: no more than there are idle slots.
        """
        self._make_room(behind=store.cache.columns)
        rows, numbers = np.asarray(seats, np.int32).T
        targets, count = self.idle[: len(seats)], len(self._going)

        def filled(values: np.ndarray, rest: int) -> np.ndarray:
            return np.concatenate([values, np.full(count - len(seats), rest)]).astype(np.int32)

        columns = filled(rows, 0), filled(targets, count), filled(numbers, 0)
        self._slots, result = _seat(self._slots, result, store, requests, *columns)
        self._request[targets], self._heard[targets], self._going[targets] = numbers, 0, True
        self._held = max(self._held, store.cache.columns)
        return result

    def advance(self, run: AdvanceFn, *, leave: int = 0) -> None:
        """Runs a chunk, which ends early when no more than `leave` slots go on, and lets the listener look."""
        self._make_room(behind=0)
        limit = min(self._chunk, self._slots.cache.columns - self._index)
        self._slots, seen = run(self._slots, np.int32(limit), np.int32(leave))
        seen = to_host(seen)
        self.steps += int(seen.steps)
        self._index, self._held, self._going = int(seen.index), int(seen.held), seen.going.copy()
        if self._listen is not None:
            self._hear(self._listen, seen.count)

    def collect(self, result: Answers) -> Answers:
        """The result, which is given away, with what the slots have written."""
        return _collect(result, self._slots.request, self._slots.answers)

    def _make_room(self, *, behind: int) -> None:
        """Makes sure that there are so many columns before the index, and one from it on."""
        if behind <= self._index < self._slots.cache.columns:
            return
        self._slots, self._index = make_room(
            self._slots, self._index, held=self._held, behind=behind, ahead=self._chunk, most=self._most
        )

    def _hear(self, listen: Listener, counts: np.ndarray) -> None:
        tokens, keep = to_host(self._slots.answers.tokens), np.full(len(counts), -1, np.int32)
        for slot in np.flatnonzero(counts > self._heard).tolist():
            count, request = int(counts[slot]), int(self._request[slot])
            kept = listen(request, tokens[slot, :count])
            if kept is None:
                continue
            if not 1 <= kept <= count:
                raise ValueError(f"a listener keeps {kept} tokens of an answer of {count}; 1 to {count} can be kept")
            keep[slot] = kept
        self._heard = counts.copy()
        if (keep >= 0).any():
            going, answers = _cut(self._slots.going, self._slots.answers, keep)
            self._slots = dataclasses.replace(self._slots, going=going, answers=answers)
            self._going &= keep < 0
