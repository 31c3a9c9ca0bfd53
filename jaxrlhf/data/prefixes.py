"""Rows that hold a prompt once, and behind it each of the answers to it.

Segment 1 is what all answers begin with and none is read at; answer k, from 0, is segment k + 2, which continues it.
A model that predicts reads the last token before the first trained one once for each answer, so that every column still
has one target.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jaxrlhf.data.token_rows import MaskedIds, blank_rows, write_sequence
from jaxrlhf.types import TokenBatch


def shared_prefix(answers: Sequence[MaskedIds], shift: int) -> int:
    """How many ids all answers have in common, before the first column that is read of any of them.

    Args:
        answers: one or more, of each of which an id is read; they need not have the same prompt.
        shift: ids that a sequence loses when it is shifted: 1 for a model that predicts, 0 for one that scores.

    Returns:
        Number of ids, perhaps 0.
    """
    most = min(int(mask.argmax()) for _, mask in answers) - shift
    differs = np.any([ids[:most] != answers[0][0][:most] for ids, _ in answers], axis=0)
    return int(differs.argmax()) if differs.any() else most


def shared_length(answers: Sequence[MaskedIds], shift: int) -> int:
    """Columns of the row that holds the answers; arguments as for `shared_prefix`."""
    prefix = shared_prefix(answers, shift)
    return prefix + sum(len(ids) - shift - prefix for ids, _ in answers)


def shared_rows(
    rows: Sequence[Sequence[MaskedIds]], shift: int, *, answers: int, tokens: int, columns: int
) -> TokenBatch:
    """Rows of a prompt and the answers to it.

    Args:
        rows: the answers of each row, at most `answers`; none in an empty row.
        shift: see `shared_prefix`.
        answers: K.
        tokens: T, at least the longest `shared_length`.
        columns: C, at least the most ids that a loss reads of one answer.

    Returns:
        `TokenBatch` of [B, T] with `prefix_ids`, and `columns` [B, K, C].
    """
    arrays = blank_rows(len(rows), tokens)
    arrays["prefix_ids"] = np.zeros((len(rows), tokens), np.int32)
    arrays["columns"] = np.full((len(rows), answers, columns), tokens, np.int32)
    for row, sequences in enumerate(rows):
        if sequences:
            _fill({name: array[row] for name, array in arrays.items()}, sequences, shift)
    return TokenBatch(**arrays)


def _fill(row: dict[str, np.ndarray], answers: Sequence[MaskedIds], shift: int) -> None:
    prefix = shared_prefix(answers, shift)
    unread = np.zeros(prefix + shift, bool)
    parts = [
        (0, answers[0][0][: prefix + shift], unread),
        *((prefix, ids[prefix:], mask[prefix:]) for ids, mask in answers),
    ]
    start = 0
    for segment, (position, ids, mask) in enumerate(parts, start=1):
        span = write_sequence(row, (ids, mask), shift, start=start, segment=segment, position=position)
        row["prefix_ids"][span] = int(segment > 1)
        if segment > 1:
            found = start + np.flatnonzero(mask[shift:])
            row["columns"][segment - 2, : len(found)] = found
        start = span.stop
