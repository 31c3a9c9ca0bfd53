"""The sections of curves: of one run with training and evaluation in a chart, of several with a colour each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from jaxrlhf.report.cards import chart_card, curve_card, folded, grid, key, section
from jaxrlhf.report.findings_training import skipped_at
from jaxrlhf.report.folder import RunRecord
from jaxrlhf.report.frontier import frontier_chart, frontier_of
from jaxrlhf.report.lines import Marks, Series
from jaxrlhf.report.markup import Markup, tag
from jaxrlhf.report.numbers import count
from jaxrlhf.report.panels import EVALUATION, Panel, has_values, panels_of
from jaxrlhf.report.spread import heat_strip
from jaxrlhf.report.story import resumed_at

HELD_OUT = "held out"
"""What an evaluation's curve is called."""


def curves_of(run: RunRecord, points: int) -> Markup:
    """The curves of a run.

    Args:
        run: the run.
        points: most points of a line.
    """
    marks = Marks(resumed=resumed_at(run), skipped=skipped_at(run))
    cards = [(panel, _card(run, panel, points, marks)) for panel in panels_of(run.curves)]
    shown = [(panel, card) for panel, card in cards if card is not None]
    note = _thinned([run], points)
    return section("Curves", _legend_of_marks(marks), *_grids(shown, _score_cards([run])), note=note)


def curves_compared(runs: Sequence[RunRecord], points: int) -> Markup:
    """The curves of several runs, a metric a chart.

    Args:
        runs: two or more, of one method.
        points: most points of a line.
    """
    cards = list(_compared(runs, points))
    return section("Curves", *_grids(cards, _score_cards(runs)), note=_thinned(runs, points))


def _thinned(runs: Sequence[RunRecord], points: int) -> str:
    """Says that curves were thinned, if they were."""
    longest = max((len(curve) for run in runs for curve in run.curves.values()), default=0)
    if longest <= points:
        return ""
    return (
        f"Curves have up to {count(longest)} points. Where there are more than {count(points)}, the line is the mean "
        f"of {count(points)} stretches and the band behind it reaches from the smallest to the largest value."
    )


def _grids(cards: Sequence[tuple[Panel, Markup]], scores: Sequence[Markup]) -> list[Markup]:
    """The charts that everyone looks at, those of scores behind the first two (score and KL), and the others."""
    main = [card for panel, card in cards if not panel.minor]
    minor = [card for panel, card in cards if panel.minor]
    return [grid(*main[:2], *scores, *main[2:]), folded("More curves", grid(*minor))]


def _score_cards(runs: Sequence[RunRecord]) -> list[Markup]:
    """The distribution of the scores of a single run, and score against KL of all that have both."""
    cards = []
    histograms = runs[0].histograms
    if len(runs) == 1 and any(sum(line["scores"]["counts"]) for line in histograms):
        cards.append(chart_card("Distribution of the scores", "line: median", None, heat_strip(histograms)))
    trails = [(run.name, frontier_of(run)) for run in runs]
    if any(points for _, points in trails):
        legend = [key(name, colour) for colour, (name, points) in enumerate(trails) if points and len(runs) > 1]
        shown = tag("span", *legend, class_="legend") if legend else None
        cards.append(chart_card("Score against KL", "√ of nats an answer", shown, frontier_chart(trails)))
    return cards


def _card(run: RunRecord, panel: Panel, points: int, marks: Marks) -> Markup | None:
    series = list(_series(run, panel))
    return curve_card(panel.title, panel.unit, series, points, marks, panel.limits) if series else None


def _series(run: RunRecord, panel: Panel) -> Iterator[Series]:
    """Colours tell training from evaluation; among several metrics they tell these, and dashes tell evaluation."""
    several = len(panel.metrics) > 1
    for number, (name, label) in enumerate(panel.metrics.items()):
        own, held_out = run.curve(name), run.curve(EVALUATION + name)
        if has_values(own):
            yield Series(label if several else "training", own, number)
        if has_values(held_out):
            shown = f"{label}, {HELD_OUT}" if several else HELD_OUT
            yield Series(shown, held_out, number if several else 1, dashed=several)


def _compared(runs: Sequence[RunRecord], points: int) -> Iterator[tuple[Panel, Markup]]:
    names = dict.fromkeys(name for run in runs for name in run.curves)
    for panel in panels_of(names):
        for name, label in panel.metrics.items():
            series = [
                Series(f"{run.name}{suffix}", run.curve(prefix + name), colour, dashed=bool(prefix))
                for prefix, suffix in (("", ""), (EVALUATION, f", {HELD_OUT}"))
                for colour, run in enumerate(runs)
                if has_values(run.curve(prefix + name))
            ]
            if series:
                title = f"{panel.title}: {label}" if len(panel.metrics) > 1 else panel.title
                yield panel, curve_card(title, panel.unit, series, points, limits=panel.limits)


def _legend_of_marks(marks: Marks) -> Markup | None:
    entries = []
    if marks.resumed:
        steps = _listed(marks.resumed)
        entries.append(tag("span", tag("i", class_="resumed"), f"resumed after step {steps}", class_="key"))
    if marks.skipped:
        steps = _listed(marks.skipped)
        entries.append(tag("span", tag("i", class_="skipped"), f"updates skipped by step {steps}", class_="key"))
    return tag("p", *entries, class_="legend") if entries else None


def _listed(steps: Sequence[int]) -> str:
    shown = ", ".join(f"{step:,}" for step in steps[:6])
    return f"{shown} and {len(steps) - 6:,} more" if len(steps) > 6 else shown
