"""The page of several runs: what they share is one chart, what differs stands side by side."""

from __future__ import annotations

from collections.abc import Sequence

from jaxrlhf.report.answers import answers_compared, answers_of
from jaxrlhf.report.cards import Detail, key, section, table
from jaxrlhf.report.curves import curves_compared, curves_of
from jaxrlhf.report.finding import Finding
from jaxrlhf.report.findings import findings_of
from jaxrlhf.report.folder import METHODS, RunRecord
from jaxrlhf.report.markup import Markup, join, tag
from jaxrlhf.report.numbers import NOTHING, count, duration, short
from jaxrlhf.report.series import last_value, total
from jaxrlhf.report.settings import differing
from jaxrlhf.report.single import findings_list
from jaxrlhf.report.story import SHOWN_STATES, ending


def comparison_page(runs: Sequence[RunRecord], detail: Detail) -> Markup:
    """The body of the page about several runs. Those of a method share charts: other methods measure other things.

    Args:
        runs: two or more.
        detail: how much of them is shown.
    """
    groups = [(method, [run for run in runs if run.method == method]) for method in METHODS]
    return join(
        tag("header", tag("p", "Comparison", class_="method"), tag("h1", f"{len(runs)} runs")),
        _overview([run for _, own in groups for run in own]),
        *(_group(method, own, detail) for method, own in groups if own),
    )


def _overview(runs: Sequence[RunRecord]) -> Markup:
    rows = [_overview_row(run) for run in runs]
    found: dict[Finding, list[str]] = {}
    for run in runs:
        for finding in findings_of(run):
            found.setdefault(finding, []).append(run.name)
    grave_first = sorted(found, key=lambda finding: finding.level != "problem")
    return join(
        table(("run", "method", "state", "steps", "tokens", "time in steps"), rows, kind="overview"),
        findings_list({finding: ", ".join(found[finding]) for finding in grave_first}),
    )


def _overview_row(run: RunRecord) -> list[str]:
    tokens, state = last_value(run.curve("num_tokens")), ending(run).state
    seconds = total(run.curve("time/iteration_s"))
    return [
        run.name,
        run.method,
        tag("span", SHOWN_STATES[state], class_=f"state {state}"),
        count(run.last_step),
        NOTHING if tokens is None else count(tokens),
        duration(seconds) if seconds else NOTHING,
    ]


def _group(method: str, runs: list[RunRecord], detail: Detail) -> Markup:
    """The runs of a method: a single one with its own charts, several with a colour each."""
    if len(runs) == 1:
        (run,) = runs
        title = f"{method}: {run.name}"
        parts = [curves_of(run, detail.points), answers_of(run, detail.characters)]
        return tag("div", tag("h2", title, class_="group"), *parts, class_="group")
    legend = [key(run.name, colour) for colour, run in enumerate(runs)]
    return tag(
        "div",
        tag("h2", f"{method}: {len(runs)} runs", class_="group"),
        tag("p", *legend, class_="legend"),
        curves_compared(runs, detail.points),
        section("Last values", _last_values(runs)),
        section("What differs in the configs", _differences(runs)),
        answers_compared(runs, detail.characters),
        class_="group",
    )


def _last_values(runs: Sequence[RunRecord]) -> Markup:
    """The last value of each metric of training, then of evaluations."""
    names = sorted(dict.fromkeys(name for run in runs for name in run.curves), key=_order)
    rows = [(name, *(short(last_value(run.curve(name))) for run in runs)) for name in names]
    return table(("metric", *(run.name for run in runs)), rows, numbers=True)


def _order(name: str) -> tuple[bool, str]:
    return name.startswith("time/"), name.removeprefix("eval/") + ("~" if name.startswith("eval/") else "")


def _differences(runs: Sequence[RunRecord]) -> Markup:
    rows = [(name, *values) for name, values in differing(runs).items()]
    if not rows:
        return tag("p", "Nothing.")
    return table(("key", *(run.name for run in runs)), rows, kind="settings")
