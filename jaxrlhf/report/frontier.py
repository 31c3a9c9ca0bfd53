"""What a reward costs in KL: the score of each step against the root of its KL (Gao et al. 2023, section 3)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from jaxrlhf.report.folder import RunRecord
from jaxrlhf.report.frame import RIGHT, WIDTH, Frame, axes, drawing, make_frame, path_of
from jaxrlhf.report.lines import colour_class
from jaxrlhf.report.markup import Markup, tag
from jaxrlhf.report.numbers import short

MOST_POINTS = 40
"""Of a run; of more, some are left out, never the last."""

SCORES = ("objective/scores", "reward")
"""Metrics that are the score of an answer, of PPO and of the other methods that sample."""


class Traded(NamedTuple):
    """A step of a run: its mean score, and its KL to the reference in nats an answer."""

    step: int
    kl: float
    score: float


def frontier_of(run: RunRecord) -> list[Traded]:
    """The points of a run, of its evaluations if there are two or more, else of training; none without a KL."""
    found = [_traded(run, prefix) for prefix in ("eval/", "")]
    return found[0] if len(found[0]) >= 2 else found[1] or found[0]


def frontier_chart(runs: Sequence[tuple[str, Sequence[Traded]]]) -> Markup:
    """Draws score against root of KL, the points of a run joined in the order of steps.

    Args:
        runs: name and points of each, at least one point in all.
    """
    points = [point for _, traded in runs for point in traded]
    frame = make_frame([0.0, *map(_root, points)], [point.score for point in points])
    drawn = [
        _trail(frame, number, name, traded, len(runs) == 1) for number, (name, traded) in enumerate(runs) if traded
    ]
    return drawing("score against the root of the KL to the reference", axes(frame, "√KL"), *drawn)


def _traded(run: RunRecord, prefix: str) -> list[Traded]:
    kls = {point.step: point.value for point in run.curve(prefix + "objective/kl")}
    scores = next((run.curve(prefix + name) for name in SCORES if run.curve(prefix + name)), ())
    return [
        Traded(point.step, kl, point.value)
        for point in scores
        if point.value is not None and (kl := kls.get(point.step)) is not None
    ]


def _root(point: Traded) -> float:
    return math.sqrt(max(point.kl, 0.0))  # an estimate near 0 can fall below


def _trail(frame: Frame, colour: int, name: str, traded: Sequence[Traded], alone: bool) -> Markup:
    chosen = [*traded[:-1][:: -(-len(traded) // MOST_POINTS)], traded[-1]]
    pixels = [frame.at(_root(point), point.score) for point in chosen]
    dots = [
        tag(
            "g",
            tag("title", f"{name}, step {point.step:,}: score {short(point.score)} at a KL of {short(point.kl)} nats"),
            tag("circle", cx=x, cy=y, r=4.5 if point is chosen[-1] else 2.5),
        )
        for point, (x, y) in zip(chosen, pixels, strict=True)
    ]
    labels = [_label(chosen[-1], pixels[-1], above=True)] if alone else []
    labels += [_label(chosen[0], pixels[0], above=False)] if alone and len(chosen) > 1 else []
    line = tag("path", d=path_of(pixels), class_="line")
    return tag("g", line, *dots, *labels, class_=f"trail {colour_class(colour)}")


def _label(point: Traded, pixel: tuple[float, float], *, above: bool) -> Markup:
    """The step beside a dot, on the side where there is room: lines mostly rise from left to right."""
    on_the_left = pixel[0] > WIDTH - RIGHT - 70
    x, y = pixel[0] + (-8 if on_the_left else 8), pixel[1] + (-6 if above else 11)
    return tag("text", f"step {point.step:,}", x=x, y=y, class_="end" if on_the_left else None)
