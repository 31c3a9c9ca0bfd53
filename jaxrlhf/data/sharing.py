"""Whether the answers to a prompt share a row: decided once, by the config and the lengths in the data."""

from __future__ import annotations

import logging

import numpy as np

from jaxrlhf.data.batches import BatchKind, most_answers, plan_widths, row_lengths
from jaxrlhf.data.config import DataConfig
from jaxrlhf.data.index import Index

SHARED: dict[BatchKind, BatchKind] = {
    "pairs": "shared_pairs",
    "scored_pairs": "shared_scored_pairs",
    "scored_ranked": "shared_scored_ranked",
}
"""The kinds of batch whose answers can share a row, and the kind in which they do."""

_MOST = 0.85  # of the cost of rows that are not shared; what is estimated below is not exact
_EVEN = 4096  # columns of a row from which attention costs as much as all else; about that of a small model

log = logging.getLogger(__name__)


def share_prompts(index: Index, kind: BatchKind, config: DataConfig, what: str = "evaluation") -> BatchKind:
    """The kind of batch to make: `kind`, or the one in which answers share a row.

    Args:
        index: the data.
        kind: what the method reads.
        config: reads `share_prompts` and `buckets`.
        what: the data, for the log.
    """
    shared = SHARED.get(kind)
    if shared is None or config.share_prompts is False:
        return kind
    if config.share_prompts:
        return shared
    answers = most_answers(index)
    apart, together = _padded(index, kind, config.buckets), _padded(index, shared, config.buckets)
    one, each = together.max(), apart.max()
    if _cost(together) <= _MOST * answers * _cost(apart):
        log.info("%s data: answers share the row of their prompt: %d columns, not %d x %d", what, one, answers, each)
        return shared
    log.info("%s data: answers have a row each: %d x %d columns, not %d shared ones", what, answers, each, one)
    return kind


def _padded(index: Index, kind: BatchKind, buckets: int) -> np.ndarray:
    """For each unit the columns of the narrowest row that holds it, [n_units]."""
    widths = np.array([width.tokens for width in plan_widths(index, kind, buckets)])
    return widths[np.searchsorted(widths, row_lengths(index, kind))]


def _cost(columns: np.ndarray) -> float:
    """What rows cost a model, relative to others: each column by itself, and with all others of its row."""
    return float(np.sum(columns * (1 + columns / _EVEN)))
