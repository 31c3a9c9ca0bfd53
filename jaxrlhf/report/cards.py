"""The pieces that pages are made of: sections, tables, tiles, and charts in their frames."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from jaxrlhf.report.frame import ANY, Limits
from jaxrlhf.report.lines import NO_MARKS, Marks, Series, colour_class, line_chart
from jaxrlhf.report.markup import Markup, join, tag
from jaxrlhf.report.numbers import short
from jaxrlhf.report.series import last_value


class Detail(NamedTuple):
    """How much of a run goes into a page.

    Attributes:
        points: most points of a curve.
        characters: most characters of a prompt or an answer.
    """

    points: int
    characters: int


class Tile(NamedTuple):
    """A headline number: what it is, the number, and a remark."""

    label: str
    value: str
    note: str


def section(title: str, *children: str | None, note: str = "") -> Markup:
    """A part of the page under a heading; nothing without children."""
    body = join(*children)
    if not body:
        return body
    remark = tag("p", note, class_="note") if note else None
    return tag("section", tag("h2", title), remark, body)


def tiles(parts: Iterable[Tile]) -> Markup:
    """Headline numbers side by side."""
    shown = [
        tag("div", tag("dt", part.label), tag("dd", part.value, class_="value"), tag("dd", part.note, class_="note"))
        for part in parts
    ]
    return tag("dl", *shown, class_="tiles") if shown else Markup()


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: bool = False, kind: str = "") -> Markup:
    """A table that scrolls by itself where the page is narrow.

    Args:
        head: of the columns.
        rows: cells; the first of each names the row.
        numbers: whether all cells but the first are numbers, to be aligned at their end.
        kind: class of the table.
    """
    written = [tag("tr", tag("th", row[0], scope="row"), *(tag("td", cell) for cell in row[1:])) for row in rows]
    top = tag("thead", tag("tr", *(tag("th", cell, scope="col") for cell in head)))
    classes = " ".join(filter(None, ["numbers" if numbers else "", kind]))
    return tag("div", tag("table", top, tag("tbody", *written), class_=classes or None), class_="scroll")


def chart_card(title: str, unit: str, legend: str | None, chart: str) -> Markup:
    """A chart with its title, the unit of its numbers, and what its colours mean."""
    caption = tag("figcaption", tag("b", title), tag("span", unit, class_="unit") if unit else None, legend)
    return tag("figure", caption, chart, class_="card")


def curve_card(
    title: str, unit: str, series: Sequence[Series], points: int, marks: Marks = NO_MARKS, limits: Limits = ANY
) -> Markup:
    """A chart of curves; the legend tells the last value of each."""
    entries = [key(one.label, one.colour, one.dashed, short(last_value(one.curve))) for one in series]
    chart = line_chart(title, series, points, marks, limits)
    return chart_card(title, unit, tag("span", *entries, class_="legend"), chart)


def key(label: str, colour: int, dashed: bool = False, value: str = "") -> Markup:
    """An entry of a legend."""
    swatch = tag("i", class_=f"{colour_class(colour)}{' dashed' if dashed else ''}")
    return tag("span", swatch, label, tag("b", value) if value else None, class_="key")


def grid(*cards: str) -> Markup:
    """Cards side by side, as many as there is room for; nothing without cards."""
    return tag("div", *cards, class_="grid") if cards else Markup()


def folded(summary: str, *children: str) -> Markup:
    """What one sees on asking; nothing without children."""
    body = join(*children)
    return tag("details", tag("summary", summary), body) if body else body
