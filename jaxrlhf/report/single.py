"""The page of one run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from jaxrlhf.report.answers import answers_of
from jaxrlhf.report.cards import Detail, Tile, folded, section, table, tiles
from jaxrlhf.report.curves import HELD_OUT, curves_of
from jaxrlhf.report.finding import Finding
from jaxrlhf.report.findings import findings_of
from jaxrlhf.report.folder import RunRecord
from jaxrlhf.report.markup import Markup, join, tag
from jaxrlhf.report.numbers import NOTHING, count, duration, percent, short
from jaxrlhf.report.panels import EVALUATION
from jaxrlhf.report.series import first_value, last_value, total
from jaxrlhf.report.settings import Setting, settings_of
from jaxrlhf.report.story import SHOWN_STATES, command_again, ending, surroundings
from jaxrlhf.report.times import phases_of, seconds_a_step

HEADLINES = (
    ("Score", ("objective/scores", "reward")),
    ("KL to the reference", ("objective/kl",)),
    ("Loss", ("loss",)),
    ("Accuracy on pairs", ("accuracy", "rewards/accuracies")),
    ("Margin", ("rewards/margins", "margin")),
    ("Token accuracy", ("mean_token_accuracy",)),
    ("Length of answers", ("completions/mean_length",)),
)
"""Headline numbers: a label, and the metrics that may be meant; a run shows those that it has."""

MOST_HEADLINES = 4
"""Of a run; steps, tokens and time come besides."""


def single_page(run: RunRecord, detail: Detail) -> Markup:
    """The body of the page about one run."""
    found = findings_of(run)
    return join(
        header(run),
        findings_list(dict.fromkeys(found, "")) if found or run.curves else None,
        tiles(headlines(run)),
        curves_of(run, detail.points),
        answers_of(run, detail.characters),
        _times(run),
        _settings(run),
        _again(run),
    )


def header(run: RunRecord) -> Markup:
    """Name, method and end of a run."""
    end = ending(run)
    return tag(
        "header",
        tag("p", run.method, class_="method"),
        tag("h1", run.name, tag("span", SHOWN_STATES[end.state], class_=f"state {end.state}")),
        tag("p", end.sentence),
        tag("p", surroundings(run), class_="note") if surroundings(run) else None,
    )


def findings_list(findings: Mapping[Finding, str]) -> Markup:
    """What to look at, and what to do about it; a line to say so where there is nothing.

    Args:
        findings: what was found -> in which runs, empty where that is clear.
    """
    if not findings:
        return tag("p", "Nothing conspicuous was found.", class_="note")
    items = [
        tag(
            "li",
            tag("em", where) if where else None,
            tag("b", finding.seen),
            " ",
            tag("span", finding.advice),
            class_=finding.level,
        )
        for finding, where in findings.items()
    ]
    return tag("ul", *items, class_="findings")


def headlines(run: RunRecord) -> list[Tile]:
    """The numbers that one asks for first."""
    found = [tile for label, names in HEADLINES for tile in _headline(run, label, names)]
    return [*found[:MOST_HEADLINES], *_effort(run)]


def _headline(run: RunRecord, label: str, names: tuple[str, ...]) -> Iterator[Tile]:
    for prefix, where in ((EVALUATION, HELD_OUT), ("", "training")):
        for name in names:
            curve = run.curve(prefix + name)
            first, last = first_value(curve), last_value(curve)
            if last is not None:
                before = f", at first {short(first)}" if len(curve) > 1 else ""
                yield Tile(label, short(last), where + before)
                return


def _effort(run: RunRecord) -> Iterator[Tile]:
    planned = run.config.get("steps")
    yield Tile("Steps", count(run.last_step), f"of {planned:,}" if isinstance(planned, int) else "")
    tokens = last_value(run.curve("num_tokens"))
    if tokens is not None:
        yield Tile("Tokens", count(tokens), "without padding")
    seconds, pace = total(run.curve("time/iteration_s")), seconds_a_step(run)
    if seconds and pace is not None:
        yield Tile("Time in steps", duration(seconds), f"{short(pace)} s a step, median")


def _times(run: RunRecord) -> Markup:
    phases = phases_of(run)
    whole = sum(phase.seconds for phase in phases)
    if not whole:
        return Markup()
    bar = [
        tag("span", class_=f"c{number}", style=f"flex-grow:{phase.seconds / whole:.4f}", title=phase.name)
        for number, phase in enumerate(phases)
    ]
    rows = [
        (
            tag("span", tag("i", class_=f"c{number}"), phase.name, class_="key"),
            duration(phase.seconds),
            percent(phase.seconds / whole),
            NOTHING if phase.tokens_per_s is None else count(phase.tokens_per_s),
        )
        for number, phase in enumerate(phases)
    ]
    shown = table(("phase", "time", "share", "tokens a second"), rows, numbers=True, kind="narrow")
    note = (
        "Time and share are of all steps, compilation included; tokens a second are those of the median line of "
        "metrics, which has none."
    )
    return section("Time", tag("div", *bar, class_="bar"), shown, note=note)


def _settings(run: RunRecord) -> Markup:
    settings = settings_of(run)
    changed = [row for row in settings.rows if row.usual is not None]
    body = (
        _setting_table(changed, settings.compared_with)
        if changed
        else tag("p", f"The config is that of {settings.compared_with}.")
    )
    return section(
        "Config",
        body,
        folded(f"All {len(settings.rows)} keys", _setting_table(settings.rows, settings.compared_with)),
        note=f"What differs from {settings.compared_with}." if changed else "",
    )


def _setting_table(rows: list[Setting], compared_with: str) -> Markup:
    head = ("key", "value", "recipe" if compared_with.startswith("the recipe") else "default")
    cells = [(row.key, row.value if row.usual is None else tag("b", row.value), row.usual or "") for row in rows]
    return table(head, cells, kind="settings")


def _again(run: RunRecord) -> Markup:
    command = command_again(run)
    return section("Run it again", tag("pre", command.line) if command.line else None, tag("p", command.hint))
