"""Rows of tokens from sequences of ids, and the one place where inputs and targets are shifted.

A sequence of n ids gives n - 1 columns to a model that predicts: it reads `ids[:-1]`, the targets are `ids[1:]`, and
column t counts if id t + 1 is to be imitated. A model that scores reads all n ids and counts at the last.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxrlhf.types import TokenBatch

MaskedIds = tuple[np.ndarray, np.ndarray]
"""Ids [n] of a sequence, such as a prompt with an answer, and a bool mask [n]: the ids that a loss reads."""


class Width(NamedTuple):
    """The static shape of a batch.

    Attributes:
        tokens: T, columns of a row.
        columns: C, columns that a loss reads (of a sequence, where rows are shared), or None for all.
    """

    tokens: int
    columns: int | None


def token_rows(rows: Sequence[Sequence[MaskedIds]], shift: int, width: Width) -> TokenBatch:
    """Rows of sequences, one behind the other, each shifted by itself: no target crosses a seam.

    Args:
        rows: the sequences of each row, which fit into it; none in an empty row.
        shift: ids that a sequence loses when it is shifted: 1 for a model that predicts, 0 for one that scores.
        width: T and C.

    Returns:
        `TokenBatch` of [B, T], with `columns` [B, C] if `width` has them.
    """
    arrays = blank_rows(len(rows), width.tokens)
    for row, sequences in enumerate(rows):
        views = {name: array[row] for name, array in arrays.items()}
        start = 0
        for segment, sequence in enumerate(sequences, start=1):
            start = write_sequence(views, sequence, shift, start=start, segment=segment).stop
    if width.columns is not None:
        arrays["columns"] = read_columns(arrays["mask"], width.columns)
    return TokenBatch(**arrays)


def blank_rows(rows: int, tokens: int) -> dict[str, Any]:
    """The [B, T] arrays of a `TokenBatch` that holds nothing."""
    names = ("tokens", "targets", "positions", "segment_ids")
    return {name: np.zeros((rows, tokens), np.int32) for name in names} | {"mask": np.zeros((rows, tokens), bool)}


def write_sequence(
    row: dict[str, np.ndarray], sequence: MaskedIds, shift: int, *, start: int, segment: int, position: int = 0
) -> slice:
    """Writes a sequence into a row, shifted.

    Args:
        row: [T] arrays, views of those of `blank_rows`; written to.
        sequence: ids and mask [n].
        shift: see `token_rows`.
        start: column of the first id.
        segment: number of the segment, from 1.
        position: of the first id in its segment, or in the one that it continues.

    Returns:
        The columns of the sequence, n - `shift`.
    """
    ids, mask = sequence
    count = len(ids) - shift
    span = slice(start, start + count)
    row["tokens"][span] = ids[:count]
    row["targets"][span] = ids[shift:] if shift else 0
    row["mask"][span] = mask[shift:]
    row["positions"][span] = position + np.arange(count)
    row["segment_ids"][span] = segment
    return span


def read_columns(mask: np.ndarray, count: int) -> np.ndarray:
    """Where each row of a mask [B, T] is True, [B, `count`] int32, padded with T; no row has more."""
    columns = np.full((len(mask), count), mask.shape[1], np.int32)
    for row, row_mask in enumerate(mask):
        found = np.flatnonzero(row_mask)
        columns[row, : len(found)] = found
    return columns
