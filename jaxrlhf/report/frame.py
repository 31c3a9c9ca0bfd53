"""The rectangle of a chart: from numbers to pixels, axes with round ticks, and columns that tell what is under them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from jaxrlhf.report.markup import Markup, decimal, join, tag
from jaxrlhf.report.numbers import tick_labels, ticks

WIDTH, HEIGHT = 380, 200
"""Pixels of every chart: cards of a page are about as wide, so that its texts keep their size."""

TOP, RIGHT, BOTTOM = 8, 12, 22
"""Pixels between the drawing and the edges; on the left it is what the labels need."""

CHARACTER = 6.2
"""Pixels of a digit of a label, a little above the truth."""


class Limits(NamedTuple):
    """What an axis does not go beyond, as long as no value does: a share is never above 1."""

    low: float = -math.inf
    high: float = math.inf


ANY = Limits()
SHARE = Limits(0.0, 1.0)
NOT_NEGATIVE = Limits(low=0.0)


class Frame(NamedTuple):
    """A chart's ranges, their ticks, and the pixels left of it.

    Attributes:
        x: smallest and largest value.
        y: smallest and largest value.
        x_ticks: within `x`.
        y_ticks: within `y`.
        left: pixels.
    """

    x: tuple[float, float]
    y: tuple[float, float]
    x_ticks: Sequence[float]
    y_ticks: Sequence[float]
    left: float

    def at(self, x: float, y: float) -> tuple[float, float]:
        """The pixel of a point; points beyond the ranges lie on the edge."""
        across = (min(max(x, self.x[0]), self.x[1]) - self.x[0]) / (self.x[1] - self.x[0])
        up = (min(max(y, self.y[0]), self.y[1]) - self.y[0]) / (self.y[1] - self.y[0])
        return (
            self.left + across * (WIDTH - RIGHT - self.left),
            HEIGHT - BOTTOM - up * (HEIGHT - BOTTOM - TOP),
        )


class Column(NamedTuple):
    """A stretch of the x axis, and the text that appears when a pointer rests on it."""

    first: float
    last: float
    text: str


def make_frame(xs: Iterable[float], ys: Iterable[float], limits: Limits = ANY, *, steps: bool = False) -> Frame:
    """Makes a frame in which all values lie, with room for a line of constant height.

    Args:
        xs: finite values, at least one.
        ys: finite values, at least one.
        limits: of the y axis.
        steps: whether the x axis counts, so that its ticks are whole numbers.
    """
    values = list(ys)
    x, y = _range(xs, 0.0), _within(_range(values, 0.06), values, limits)
    x_ticks, y_ticks = ticks(*x, least=1.0 if steps else 0.0), ticks(*y)
    longest = max((len(label) for label in tick_labels(y_ticks)), default=0)
    return Frame(x=x, y=y, x_ticks=x_ticks, y_ticks=y_ticks, left=max(34.0, 12 + CHARACTER * longest))


def axes(frame: Frame, x_name: str) -> Markup:
    """Draws grid lines and labels.

    Args:
        frame: of the chart.
        x_name: what the x axis counts, a short word that stands left of its numbers.
    """
    bottom = HEIGHT - BOTTOM
    grid = [(frame.at(frame.x[0], value), frame.at(frame.x[1], value)) for value in frame.y_ticks]
    path = "".join(f"M{decimal(start[0])} {decimal(start[1])}H{decimal(end[0])}" for start, end in grid)
    named = zip(frame.y_ticks, tick_labels(frame.y_ticks), strict=True)
    left = [
        tag("text", label, x=frame.left - 6, y=frame.at(frame.x[0], value)[1] + 3.5, class_="end")
        for value, label in named
    ]
    below = [
        tag("text", label, x=frame.at(value, frame.y[0])[0], y=bottom + 15, class_="middle")
        for value, label in zip(frame.x_ticks, tick_labels(frame.x_ticks), strict=True)
    ]
    name = tag("text", x_name, x=frame.left - 14, y=bottom + 15, class_="end")
    base = tag("path", d=f"M{decimal(frame.left)} {bottom}H{WIDTH - RIGHT}", class_="base")
    return tag("g", tag("path", d=path, class_="rules"), base, *left, *below, name, class_="axes")


def columns(frame: Frame, parts: Iterable[Column]) -> Markup:
    """Lays columns over a chart that are seen only under the pointer."""
    rectangles = []
    for part in parts:
        left, right = frame.at(part.first, frame.y[0])[0], frame.at(part.last, frame.y[0])[0]
        rectangles.append(
            tag(
                "g",
                tag("title", part.text),
                tag("rect", x=left, y=TOP, width=max(right - left, 1.0), height=HEIGHT - BOTTOM - TOP),
            )
        )
    return tag("g", *rectangles, class_="columns")


def drawing(description: str, *layers: str) -> Markup:
    """A chart, one layer over the other."""
    return tag("svg", join(*layers), viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=description)


def path_of(pixels: Iterable[tuple[float, float] | None]) -> str:
    """The path through points, broken where one is None."""
    parts, pen_is_down = [], False
    for pixel in pixels:
        if pixel is not None:
            parts.append(f"{'L' if pen_is_down else 'M'}{decimal(pixel[0])} {decimal(pixel[1])}")
        pen_is_down = pixel is not None
    return "".join(parts)


def _within(reach: tuple[float, float], values: Sequence[float], limits: Limits) -> tuple[float, float]:
    low = reach[0] if min(values) < limits.low else max(reach[0], limits.low)
    high = reach[1] if max(values) > limits.high else min(reach[1], limits.high)
    return low, high


def _range(values: Iterable[float], margin: float) -> tuple[float, float]:
    known = list(values)
    low, high = min(known), max(known)
    if high - low <= 1e-9 * max(abs(low), abs(high)):  # constant, but for rounding
        room = abs(high) / 2 or 1.0
        return (low - room, high + room) if margin else (low, high + room)
    room = margin * (high - low)
    return low - room, high + room
