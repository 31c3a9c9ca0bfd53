"""Metrics that add up: a sum with its weight, an extreme, a count.

A mean of means is wrong wherever the parts differ in size, so losses and steps never return a mean: they return what
a mean is made of. Parts of a batch are stacked along a leading axis by `lax.scan` and merged by `reduce_stacked`;
`.value` is the number to print.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Mean:
    """A weighted mean in two parts, both float32 scalars: the weighted sum and the sum of the weights."""

    sum: jax.Array
    weight: jax.Array

    @property
    def value(self) -> jax.Array:
        """The mean; NaN where nothing was counted."""
        return self.sum / self.weight

    def reduce(self) -> Mean:
        """Merges parts stacked along the leading axis."""
        return Mean(self.sum.sum(axis=0), self.weight.sum(axis=0))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Difference:
    """One mean minus another, where each counts values of its own and a mean of differences is not to be had."""

    left: Mean
    right: Mean

    @property
    def value(self) -> jax.Array:
        """The difference; NaN where either counted nothing."""
        return self.left.value - self.right.value

    def reduce(self) -> Difference:
        """Merges parts stacked along the leading axis."""
        return Difference(self.left.reduce(), self.right.reduce())


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Max:
    """The largest value seen."""

    value: jax.Array

    def reduce(self) -> Max:
        """Merges parts stacked along the leading axis."""
        return Max(self.value.max(axis=0))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Min:
    """The smallest value seen."""

    value: jax.Array

    def reduce(self) -> Min:
        """Merges parts stacked along the leading axis."""
        return Min(self.value.min(axis=0))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sum:
    """A count or another quantity that simply adds."""

    value: jax.Array

    def reduce(self) -> Sum:
        """Merges parts stacked along the leading axis."""
        return Sum(self.value.sum(axis=0))


def mean_of(values: jax.Array, mask: jax.Array | None = None) -> Mean:
    """The `Mean` of an array over the True entries of a mask.

    Args:
        values: [...] array of any rank.
        mask: bool array of the same shape, or None to count everything.
    """
    values = values.astype(jnp.float32)
    if mask is None:
        return Mean(jnp.sum(values), jnp.asarray(values.size, jnp.float32))
    return Mean(jnp.sum(jnp.where(mask, values, 0.0)), jnp.sum(mask, dtype=jnp.float32))


def max_of(values: jax.Array, mask: jax.Array) -> Max:
    """The `Max` of an array over the True entries of a mask; -inf where there is none."""
    return Max(jnp.max(jnp.where(mask, values.astype(jnp.float32), -jnp.inf)))


def min_of(values: jax.Array, mask: jax.Array) -> Min:
    """The `Min` of an array over the True entries of a mask; +inf where there is none."""
    return Min(jnp.min(jnp.where(mask, values.astype(jnp.float32), jnp.inf)))


def is_metric(x: Any) -> bool:
    """Whether a node of a pytree is one of the classes of this module."""
    return isinstance(x, Mean | Difference | Max | Min | Sum)


def reduce_stacked(metrics: Any) -> Any:
    """Merges metrics whose leaves `lax.scan` stacked along a leading axis."""
    return jax.tree.map(lambda metric: metric.reduce(), metrics, is_leaf=is_metric)


def values_of(metrics: Any) -> Any:
    """Replaces every metric of a pytree by its value."""
    return jax.tree.map(lambda metric: metric.value, metrics, is_leaf=is_metric)


def merged_values(parts: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Fetches the metrics of several steps or batches and merges them, on the host: nothing more runs on the device.

    Args:
        parts: metrics with the same names, one dictionary a step.

    Returns:
        Metric name -> value; NaN where nothing was counted.
    """
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves, dtype=np.float64), *jax.device_get(parts))
    with np.errstate(divide="ignore", invalid="ignore"):
        return {name: float(value) for name, value in values_of(reduce_stacked(stacked)).items()}
