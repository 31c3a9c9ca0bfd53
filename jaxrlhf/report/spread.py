"""The distribution of scores over the steps as a heat strip: darker where more answers lie."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jaxrlhf.report.frame import Column, Frame, axes, columns, drawing, make_frame, path_of
from jaxrlhf.report.markup import Markup, decimal, tag
from jaxrlhf.report.numbers import count, short

ROWS = 32
"""Cells of a column."""

MOST_COLUMNS = 48
"""Windows of a longer run are added up, so that a column is some pixels wide."""

LEVELS = 5
"""Shades."""


class Window(NamedTuple):
    """The scores of some steps.

    Attributes:
        first: step that it begins after.
        last: step that it ends with.
        weights: answers in each of `ROWS` cells between the lowest and the highest score of the run.
        unscored: answers without a score.
    """

    first: int
    last: int
    weights: Sequence[float]
    unscored: float


def heat_strip(histograms: Sequence[Mapping[str, Any]]) -> Markup:
    """Draws histograms side by side, and their median as a line.

    Args:
        histograms: lines of histograms.jsonl in the order of steps, at least one, at least one of them with an answer.
    """
    filled = [line for line in histograms if sum(line["scores"]["counts"])]
    edges = [edge for line in filled for edge in _occupied(line["scores"])]
    low, high = min(edges), max(edges)
    low, high = (low, high) if high > low else (low - 0.5, high + 0.5)
    frame = make_frame([0, *(line["step"] for line in filled)], [low, high], steps=True)
    windows = _windows(histograms, low, high)
    middles = [
        frame.at((window.first + window.last) / 2, quantile(window.weights, low, high, 0.5))
        for window in windows
        if sum(window.weights)
    ]
    return drawing(
        "distribution of the scores over the steps",
        axes(frame, "step"),
        _cells(frame, windows, low, high),
        tag("g", tag("path", d=path_of(middles), class_="line"), class_="median"),
        columns(frame, [Column(window.first, window.last, _told(window, low, high)) for window in windows]),
    )


def quantile(weights: Sequence[float], low: float, high: float, share: float) -> float:
    """The score below which a share of the answers lies.

    Args:
        weights: answers in cells of equal size between `low` and `high`, not all 0.
        low: lower end of the first cell.
        high: upper end of the last.
        share: from 0 to 1.
    """
    wanted, size = share * sum(weights), (high - low) / len(weights)
    below = 0.0
    for number, weight in enumerate(weights):
        if weight and below + weight >= wanted:
            return low + size * (number + (wanted - below) / weight)
        below += weight
    return high


def spread_over(edges: Sequence[float], counts: Sequence[float], low: float, high: float) -> list[float]:
    """Divides the counts of a histogram over `ROWS` cells between `low` and `high`, each bin by what it overlaps."""
    weights, size = [0.0] * ROWS, (high - low) / ROWS
    for start, end, number in zip(edges, edges[1:], counts, strict=False):
        if not number:
            continue
        first = min(max(math.floor((start - low) / size), 0), ROWS - 1)
        last = min(max(math.ceil((end - low) / size) - 1, first), ROWS - 1)
        for row in range(first, last + 1):
            overlap = min(end, low + (row + 1) * size) - max(start, low + row * size)
            weights[row] += number * (overlap / (end - start) if last > first else 1.0)
    return weights


def _occupied(scores: Mapping[str, Any]) -> list[float]:
    """The outer edges of the bins that hold an answer."""
    held = [number for number, count in enumerate(scores["counts"]) if count]
    return [scores["edges"][held[0]], scores["edges"][held[-1] + 1]]


def _windows(histograms: Sequence[Mapping[str, Any]], low: float, high: float) -> list[Window]:
    """A window for each line, or for some neighbouring ones."""
    starts = [0, *(line["step"] for line in histograms)]
    size = -(-len(histograms) // MOST_COLUMNS)
    windows = []
    for number in range(0, len(histograms), size):
        lines = histograms[number : number + size]
        parts = [spread_over(line["scores"]["edges"], line["scores"]["counts"], low, high) for line in lines]
        weights = [sum(row) for row in zip(*parts, strict=True)]
        unscored = sum(line["scores"].get("unscored", 0) for line in lines)
        windows.append(Window(starts[number], lines[-1]["step"], weights, unscored))
    return windows


def _cells(frame: Frame, windows: Sequence[Window], low: float, high: float) -> Markup:
    """One path a shade: neighbouring cells of a shade are one rectangle."""
    shares = [[weight / (sum(window.weights) or 1) for weight in window.weights] for window in windows]
    largest = max(map(max, shares))
    size = (high - low) / ROWS
    shapes: dict[int, list[str]] = {level: [] for level in range(1, LEVELS + 1)}
    for window, column in zip(windows, shares, strict=True):
        # The root shows what is rare beside what is frequent.
        levels = [math.ceil(LEVELS * math.sqrt(share / largest)) for share in column]
        row = 0
        for level, run in itertools.groupby(levels):
            rows = len(list(run))
            if level:
                left, top = frame.at(window.first, low + (row + rows) * size)
                right, bottom = frame.at(window.last, low + row * size)
                shapes[level].append(
                    f"M{decimal(left)} {decimal(top)}H{decimal(right)}V{decimal(bottom)}H{decimal(left)}Z"
                )
            row += rows
    paths = [tag("path", d="".join(shape), class_=f"heat{level}") for level, shape in shapes.items() if shape]
    return tag("g", *paths, class_="heat")


def _told(window: Window, low: float, high: float) -> str:
    answers = sum(window.weights)
    steps = f"steps {window.first + 1:,} to {window.last:,}"
    unscored = f"; {count(window.unscored)} without a score" if window.unscored else ""
    if not answers:
        return f"{steps}: no answer has a score{unscored}"
    five, half, most = (quantile(window.weights, low, high, share) for share in (0.05, 0.5, 0.95))
    middle = f"median {short(half)}, nine of ten from {short(five)} to {short(most)}"
    return f"{steps}: {count(answers)} answers, {middle}{unscored}"
