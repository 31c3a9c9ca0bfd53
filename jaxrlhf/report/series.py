"""A metric over the steps of a run, and the few numbers that a chart or a sentence takes from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Point(NamedTuple):
    """A value at a step; None where it was not finite."""

    step: int
    value: float | None


Curve = Sequence[Point]
"""Points in the order of steps."""


class Stretch(NamedTuple):
    """Some neighbouring points as one.

    Attributes:
        first: step of the first of them.
        last: step of the last.
        low: the smallest value; None, as the other two, if none was finite.
        mean: the mean value.
        high: the largest value.
    """

    first: int
    last: int
    low: float | None
    mean: float | None
    high: float | None

    @property
    def step(self) -> float:
        """Where it is drawn."""
        return (self.first + self.last) / 2


def condense(curve: Curve, limit: int) -> list[Stretch]:
    """Cuts a curve into at most `limit` stretches of about the same number of points; short curves stay as they are."""
    size = max(1, len(curve))
    parts = min(limit, size)
    bounds = [number * size // parts for number in range(parts + 1)]
    return [_stretch(curve[start:end]) for start, end in zip(bounds, bounds[1:], strict=False) if curve[start:end]]


def finite(curve: Curve) -> list[tuple[int, float]]:
    """The points that have a value."""
    return [(point.step, point.value) for point in curve if point.value is not None]


def last_value(curve: Curve) -> float | None:
    """The value of the last point that has one."""
    values = finite(curve)
    return values[-1][1] if values else None


def first_value(curve: Curve) -> float | None:
    """The value of the first point that has one."""
    values = finite(curve)
    return values[0][1] if values else None


def total(curve: Curve) -> float:
    """The sum of all values."""
    return sum(value for _, value in finite(curve))


def mean_of_last(curve: Curve, share: float) -> float | None:
    """The mean over the last part of a curve, at least one value; None if there is none."""
    values = [value for _, value in finite(curve)]
    part = values[-max(1, round(share * len(values))) :]
    return sum(part) / len(part) if part else None


def _stretch(points: Curve) -> Stretch:
    values = [point.value for point in points if point.value is not None]
    if not values:
        return Stretch(points[0].step, points[-1].step, None, None, None)
    # Clamped: rounding can carry the mean of equal values past them.
    mean = min(max(sum(values) / len(values), min(values)), max(values))
    return Stretch(points[0].step, points[-1].step, min(values), mean, max(values))
