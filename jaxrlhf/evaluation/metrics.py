"""Metrics of a loss over a whole evaluation set."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from jaxrlhf.ops.stats import reduce_stacked, values_of
from jaxrlhf.types import Metrics


def average(evaluate: Callable[[Any], Metrics], batches: Iterable[Any]) -> dict[str, float]:
    """Evaluates every batch and merges the metrics by their weights, so padded rows and uneven batches do no harm.

    Args:
        evaluate: batch to metrics, compiled.
        batches: the evaluation set, each row once.

    Returns:
        Metric name to value.

    Raises:
        ValueError: if there are no batches.
    """
    parts = [evaluate(batch) for batch in batches]
    if not parts:
        raise ValueError("the evaluation set has no batches")
    merged = reduce_stacked(jax.tree.map(lambda *leaves: jnp.stack(leaves), *parts))
    return {name: float(value) for name, value in values_of(merged).items()}
