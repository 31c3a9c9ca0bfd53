"""Whether the answers to a prompt share a row: decided once, by the config and the lengths in the data."""

from __future__ import annotations

import logging

import numpy as np

from jaxrlhf.data.batches import BatchKind, most_answers
from jaxrlhf.data.config import DataConfig
from jaxrlhf.data.index import Index
from jaxrlhf.data.widths import plan_widths, row_lengths

SHARED: dict[BatchKind, BatchKind] = {
    "pairs": "shared_pairs",
    "scored_pairs": "shared_scored_pairs",
    "scored_ranked": "shared_scored_ranked",
}
"""The kinds of batch whose answers can share a row, and the kind in which they do."""

_MOST = 0.85  # of the cost of rows that are not shared; what is estimated below is not exact
_EVEN = 4096  # columns of a row from which attention costs as much as all else; about that of a small model

log = logging.getLogger(__name__)


def share_prompts(
    index: Index, kind: BatchKind, config: DataConfig, what: str = "evaluation", why_not: str | None = None
) -> BatchKind:
    """The kind of batch to make: `kind`, or the one in which answers share a row.

    Args:
        index: the data.
        kind: what the method reads.
        config: reads `share_prompts` and `buckets`.
        what: the data, for the log.
        why_not: why answers should have a row each if `share_prompts` leaves it open, for the log; None if they need
            not.
    """
    shared = SHARED.get(kind)
    if shared is None:
        return kind
    answers = most_answers(index)
    apart, together = _padded(index, kind, config.buckets), _padded(index, shared, config.buckets)
    if config.share_prompts is not None:
        shares, why = config.share_prompts, f" (data.share_prompts={str(config.share_prompts).lower()})"
    elif why_not is not None:
        shares, why = False, f" ({why_not})"
    else:
        shares, why = _pays(together, apart, answers), ""
    one, each = together.max(), f"{answers} x {apart.max()}"
    if shares:
        log.info("%s data: answers share the row of their prompt%s: %d columns, not %s", what, why, one, each)
        return shared
    log.info("%s data: answers have a row each%s: %s columns, not %d shared ones", what, why, each, one)
    return kind


def sampled_should_share(index: Index, buckets: int, *, answers: int, length: int) -> bool:
    """Whether a prompt in a row with all answers that are sampled to it leaves a model less than a row for each.

    Args:
        index: of prompts.
        buckets: see `DataConfig.buckets`.
        answers: to each prompt.
        length: tokens that are kept for each answer.
    """
    prompts = _padded(index, "prompts", buckets)
    return _pays(prompts - 1 + answers * length, prompts - 1 + length, answers)


def _pays(together: np.ndarray, apart: np.ndarray, answers: int) -> bool:
    """Whether rows of so many columns cost clearly less than `answers` times those."""
    return bool(_cost(together) <= _MOST * answers * _cost(apart))


def _padded(index: Index, kind: BatchKind, buckets: int) -> np.ndarray:
    """For each unit the columns of the narrowest row that holds it, [n_units]."""
    widths = np.array([width.tokens for width in plan_widths(index, kind, buckets)])
    return widths[np.searchsorted(widths, row_lengths(index, kind))]


def _cost(columns: np.ndarray) -> float:
    """What rows cost a model, relative to others: each column by itself, and with all others of its row."""
    return float(np.sum(columns * (1 + columns / _EVEN)))
