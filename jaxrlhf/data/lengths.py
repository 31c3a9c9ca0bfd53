"""Sequences that are too long: cut or dropped, and bins for those that are short."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from typing import Literal

import numpy as np

from jaxrlhf.data.config import DataConfig
from jaxrlhf.data.encoder import Encoded

Dropped = Literal["long_prompt", "long", "untrained", "identical"]
"""Why an example was dropped: its prompt fills max_length, a sequence exceeds it, nothing to imitate is left, or its
answers are the same once cut."""


def fit(answers: Sequence[Encoded], config: DataConfig, bos: int | None) -> list[Encoded] | Dropped:
    """Makes the sequences of one example fit into `max_length`.

    With truncation "keep_end" the same number of tokens is cut from the prompt of every answer, as long as that is
    enough, so that the answers still follow the same prompt; a beginning-of-sequence token stays.

    Args:
        answers: the sequences: one text, two answers, or K answers.
        config: reads `max_length` and `truncation`.
        bos: the beginning-of-sequence id, or None.

    Returns:
        The sequences, or why the example was dropped.
    """
    if any(answer.prompt >= config.max_length for answer in answers):
        return "long_prompt"
    excess = max(len(answer.ids) for answer in answers) - config.max_length
    if excess > 0 and config.truncation == "drop":
        return "long"
    if excess > 0:
        cut = _keep_start if config.truncation == "keep_start" else _keep_end
        answers = [cut(answer, config.max_length, excess, bos) for answer in answers]
    if not all(answer.mask.any() for answer in answers):
        return "untrained"
    if len(answers) > 1 and len({answer.ids.tobytes() for answer in answers}) == 1:
        return "identical"
    return list(answers)


def pack(lengths: np.ndarray, capacity: int) -> list[np.ndarray]:
    """Packs items into bins, largest first, each into the fullest bin that has room (best-fit decreasing).

    Args:
        lengths: [n] int, length of each item, at most `capacity`.
        capacity: room of a bin.

    Returns:
        For each bin the numbers of its items, ascending. Depends on the arguments alone.
    """
    bins: list[list[int]] = []
    room: list[int] = []  # ascending rooms that some bin has, and the bins that have them
    with_room: dict[int, list[int]] = {}
    for item in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[item])
        place = bisect.bisect_left(room, length)
        if place == len(room):
            bins.append([item])
            chosen, left = len(bins) - 1, capacity - length
        else:
            chosen, left = with_room[room[place]].pop(), room[place] - length
            bins[chosen].append(item)
            if not with_room[room[place]]:
                del with_room[room.pop(place)]
        if left not in with_room:
            bisect.insort(room, left)
            with_room[left] = []
        with_room[left].append(chosen)
    return [np.array(sorted(items), np.int64) for items in bins]


def _keep_start(answer: Encoded, max_length: int, excess: int, bos: int | None) -> Encoded:
    del excess, bos
    return Encoded(answer.ids[:max_length], answer.mask[:max_length], answer.prompt)


def _keep_end(answer: Encoded, max_length: int, excess: int, bos: int | None) -> Encoded:
    kept = int(bos is not None and answer.ids[0] == bos)
    cut = min(excess, answer.prompt - kept)
    cut += max(len(answer.ids) - cut - max_length, 0)
    mask = np.delete(answer.mask, slice(kept, kept + cut))
    mask[0] = False
    return Encoded(np.delete(answer.ids, slice(kept, kept + cut)), mask, max(answer.prompt - cut, kept))
