"""Charts of metrics over the steps."""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from jaxrlhf.report.frame import (
    ANY,
    BOTTOM,
    HEIGHT,
    TOP,
    Column,
    Frame,
    Limits,
    axes,
    columns,
    drawing,
    make_frame,
    path_of,
)
from jaxrlhf.report.markup import Markup, decimal, tag
from jaxrlhf.report.numbers import short
from jaxrlhf.report.series import Curve, Stretch, condense

COLOURS = 8
"""Of the stylesheet; the ninth series has the first colour again."""

DOTTED = 40
"""Curves of more points are drawn without a dot at each."""

COLUMNS = 40
"""Most columns of a chart that tell their values."""


class Series(NamedTuple):
    """A curve of a chart.

    Attributes:
        label: its name.
        curve: its points.
        colour: its number, from 0 on.
        dashed: whether the line is dashed, as evaluations are where colours say something else.
    """

    label: str
    curve: Curve
    colour: int
    dashed: bool = False


class Marks(NamedTuple):
    """What happened to a run, to be seen in each chart: steps that it resumed from, steps with skipped updates."""

    resumed: Sequence[int] = ()
    skipped: Sequence[int] = ()


NO_MARKS = Marks()


def line_chart(
    description: str, series: Sequence[Series], points: int, marks: Marks = NO_MARKS, limits: Limits = ANY
) -> Markup:
    """Draws curves over steps. Curves of more than `points` points are drawn as means, with the range behind them.

    Args:
        description: for those who do not see it.
        series: at least one of them with a finite value.
        points: most points of a line.
        marks: to be drawn behind the curves.
        limits: of the values.
    """
    drawn = [(one, condense(one.curve, points)) for one in series]
    known = [stretch for _, stretches in drawn for stretch in stretches]
    values = [value for part in known for value in (part.low, part.high) if value is not None]
    frame = make_frame([0, *(part.last for part in known)], values, limits, steps=True)
    return drawing(
        description,
        axes(frame, "step"),
        _marks(frame, marks),
        *(_line(frame, one, stretches) for one, stretches in drawn),
        columns(frame, _columns(drawn)),
    )


def colour_class(number: int) -> str:
    """The class that gives an element the colour of a series."""
    return f"c{number % COLOURS}"


def _line(frame: Frame, series: Series, stretches: Sequence[Stretch]) -> Markup:
    spread = any(part.low != part.high for part in stretches)
    middles = [None if part.mean is None else frame.at(part.step, part.mean) for part in stretches]
    return tag(
        "g",
        tag("path", d=_band(frame, stretches), class_="band") if spread else None,
        tag("path", d=path_of(middles), class_="line"),
        _dots(stretches, middles),
        class_=f"{colour_class(series.colour)}{' dashed' if series.dashed else ''}",
    )


def _dots(stretches: Sequence[Stretch], middles: Sequence[tuple[float, float] | None]) -> Markup:
    """A dot at each point of a short curve, and of a long one at those that no line reaches."""
    every = len(stretches) <= DOTTED
    around = zip([None, *middles], middles, [*middles[1:], None], strict=False)
    shown = [pixel for before, pixel, after in around if pixel is not None and (every or not (before or after))]
    path = "".join(f"M{decimal(x)} {decimal(y)}h0" for x, y in shown)  # round caps make a dot of no length
    return tag("path", d=path, class_="dots") if path else Markup()


def _band(frame: Frame, stretches: Sequence[Stretch]) -> str:
    """The outline of the range of the values, in pieces where there are none."""
    pieces: list[list[Stretch]] = [[]]
    for part in stretches:
        if part.mean is None:
            pieces.append([])
        else:
            pieces[-1].append(part)
    outlines = []
    for piece in pieces:
        upper = [frame.at(part.step, part.high) for part in piece if part.high is not None]
        lower = [frame.at(part.step, part.low) for part in reversed(piece) if part.low is not None]
        outlines += [path_of([*upper, *lower]) + "Z"] if piece else []
    return "".join(outlines)


def _marks(frame: Frame, marks: Marks) -> Markup:
    bottom = HEIGHT - BOTTOM
    resumed = _places(frame, marks.resumed)
    skipped = _places(frame, marks.skipped)
    return tag(
        "g",
        tag("path", d="".join(f"M{x} {TOP}V{bottom}" for x in resumed), class_="resumed") if resumed else None,
        tag("path", d="".join(f"M{x} {TOP - 6}v8" for x in skipped), class_="skipped") if skipped else None,
    )


def _places(frame: Frame, steps: Iterable[int]) -> list[int]:
    """The pixel columns of some steps: there are only so many, however many the steps."""
    return sorted({round(frame.at(step, frame.y[0])[0]) for step in steps})


def _columns(drawn: Sequence[tuple[Series, Sequence[Stretch]]]) -> list[Column]:
    """Cuts the steps into columns, at most `COLUMNS`, and says in each the values of its last step."""
    steps = sorted({part.step for _, stretches in drawn for part in stretches})
    chosen = steps[:: -(-len(steps) // COLUMNS)]
    borders = [chosen[0], *((a + b) / 2 for a, b in zip(chosen, chosen[1:], strict=False)), steps[-1]]
    ends = zip(borders, borders[1:], strict=False)
    return [Column(start, end, _told(drawn, step)) for step, (start, end) in zip(chosen, ends, strict=True)]


def _told(drawn: Sequence[tuple[Series, Sequence[Stretch]]], step: float) -> str:
    lines = []
    for series, stretches in drawn:
        number = bisect.bisect_left([part.step for part in stretches], step)
        if number == len(stretches):
            continue
        part = stretches[number]
        where = f"step {part.last:,}" if part.first == part.last else f"steps {part.first:,} to {part.last:,}"
        spread = f" ({short(part.low)} to {short(part.high)})" if part.low != part.high else ""
        lines.append(f"{series.label}: {short(part.mean)}{spread} at {where}")
    return "\n".join(lines)
