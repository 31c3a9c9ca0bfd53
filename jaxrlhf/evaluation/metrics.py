"""Metrics of a loss over a whole evaluation set."""

from __future__ import annotations

from collections.abc import Iterable

from jaxrlhf.ops.stats import merged_values
from jaxrlhf.types import Metrics


def average(parts: Iterable[Metrics]) -> dict[str, float]:
    """Merges the metrics of batches by their weights, so padded rows and uneven batches do no harm.

    Args:
        parts: the metrics of each batch of the evaluation set.

    Returns:
        Metric name to value.

    Raises:
        ValueError: if there are none.
    """
    parts = list(parts)
    if not parts:
        raise ValueError("the evaluation set has no batches")
    return merged_values(parts)
