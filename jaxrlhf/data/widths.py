"""The shapes that batches of an index may have, few enough that a step is compiled for each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jaxrlhf.data.batches import LAYOUTS, BatchKind, Layout, read_unit
from jaxrlhf.data.index import Index
from jaxrlhf.data.prefixes import shared_length
from jaxrlhf.data.token_rows import Width

_MULTIPLE = 8  # accelerators pad rows to this anyway
_MAX_COLUMN_SHARE = 0.75  # with more columns than this to read, picking them saves nothing


def plan_widths(index: Index, kind: BatchKind, buckets: int = 1) -> tuple[Width, ...]:
    """Chooses the shapes that batches of an index may have.

    Args:
        index: the index.
        kind: the kind of batch.
        buckets: number of shapes at most, at least 1; they are quantiles of the lengths.

    Returns:
        Ascending shapes; the last holds every unit.

    Raises:
        ValueError: if the index does not suit the kind of batch.
    """
    layout = LAYOUTS[kind]
    if index.kind not in layout.index_kinds:
        raise ValueError(f"{kind!r} batches need an index of {' or '.join(layout.index_kinds)}, not of {index.kind!r}")
    lengths, columns = row_lengths(index, kind), _most_read(index, layout)
    quantiles = np.quantile(lengths, np.arange(1, buckets + 1) / buckets, method="inverted_cdf")
    widths = []
    for tokens in sorted({_round_up(int(length)) for length in quantiles}):
        most = _round_up(int(columns[lengths <= tokens].max()))
        picked = layout.shared or 0 < most < _MAX_COLUMN_SHARE * tokens
        widths.append(Width(tokens, most if picked else None))
    return tuple(widths)


def row_lengths(index: Index, kind: BatchKind) -> np.ndarray:
    """For each unit the columns of its longest row, without padding, [n_units] int64."""
    layout = LAYOUTS[kind]
    if layout.shared:
        return np.array([_unit_length(index, layout, unit) for unit in range(index.units)], np.int64)
    lengths = np.diff(index.offsets) - layout.shift
    return _of_units(index, lengths)


def choose_width(index: Index, kind: BatchKind, widths: Sequence[Width], units: np.ndarray) -> Width:
    """Returns the smallest shape that holds all units of a global batch, so that every process chooses the same.

    Args:
        index: the index.
        kind: the kind of batch.
        widths: ascending shapes, from `plan_widths`.
        units: [B] int64, the units of the whole batch; -1 is an empty row.

    Returns:
        The shape.
    """
    longest = max((_unit_length(index, LAYOUTS[kind], int(unit)) for unit in units if unit >= 0), default=0)
    return next(width for width in widths if width.tokens >= longest)


def _most_read(index: Index, layout: Layout) -> np.ndarray:
    """For each unit the most columns that count in a row, or of an answer where they share one, [n_units] int64."""
    trained = np.add.reduceat(index.mask, index.offsets[:-1], dtype=np.int64)
    return _of_units(index, np.ones_like(trained) if layout.scores else trained)


def _of_units(index: Index, numbers: np.ndarray) -> np.ndarray:
    """From numbers of sequences to those of units: the sum of what is packed in one row, the most of several rows."""
    if index.bins is not None:
        return np.array([numbers[packed].sum() for packed in index.bins])
    return np.maximum.reduceat(numbers, index.groups[:-1])


def _unit_length(index: Index, layout: Layout, unit: int) -> int:
    if layout.shared:
        return shared_length(read_unit(index, unit, scores=layout.scores), layout.shift)
    sequences = index.sequences_of(unit)
    lengths = index.offsets[sequences + 1] - index.offsets[sequences] - layout.shift
    return int(lengths.sum() if index.bins is not None else lengths.max())


def _round_up(number: int) -> int:
    return -(-number // _MULTIPLE) * _MULTIPLE
