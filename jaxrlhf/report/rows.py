"""The lines of a run's files: those that are as trainers write them, and what is wrong with the others."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from jaxrlhf.report.numbers import usable


def read_rows(path: Path, check: Callable[[Any], str], problems: list[str]) -> Iterator[dict[str, Any]]:
    """Yields the lines of a file of JSON lines.

    Args:
        path: the file; none has no lines.
        check: says what is wrong with a line, or nothing.
        problems: takes the place of each line that is left out, and what is wrong with it.
    """
    lines = path.read_bytes().split(b"\n") if path.is_file() else []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError):
            cut = ": cut short, as a killed run leaves its last" if number == len(lines) else ""
            problems.append(f"{path}:{number}: not a line of JSON{cut}")
            continue
        complaint = check(row)
        if complaint:
            problems.append(f"{path}:{number}: {complaint}")
        else:
            yield row


def _check_step(row: Any) -> str:
    if not isinstance(row, dict):
        return "expected a JSON object"
    step = row.get("step")
    fine = isinstance(step, int) and not isinstance(step, bool) and 0 <= step < 2**53
    return "" if fine else f"step is {_shown(step)}, expected a number of steps"


def check_metrics(row: Any) -> str:
    """What is wrong with a line of metrics.jsonl; nothing: an empty text."""
    if complaint := _check_step(row):
        return complaint
    bad = [name for name, value in row.items() if name != "nonfinite" and not _is_metric(value)]
    return f"{bad[0]!r} is {_shown(row[bad[0]])}, expected a number or null" if bad else ""


def check_event(row: Any) -> str:
    """What is wrong with a line of events.jsonl."""
    return _check_step(row) or ("" if isinstance(row.get("event"), str) else "event is missing")


def check_histogram(row: Any) -> str:
    """What is wrong with a line of histograms.jsonl."""
    if complaint := _check_step(row):
        return complaint
    scores = row.get("scores")
    if not isinstance(scores, dict):
        return "scores are missing"
    edges, counts = scores.get("edges"), scores.get("counts")
    if not isinstance(edges, list) or not isinstance(counts, list) or not len(edges) == len(counts) + 1 > 1:
        return "scores are not counts between edges"
    numbers = [usable(value) for value in (*edges, *counts, scores.get("unscored", 0))]
    if None in numbers or edges != sorted(edges) or min(counts) < 0:
        return "scores have edges that do not rise, or what is no count"
    return ""


def check_sample(row: Any) -> str:
    """What is wrong with a line of samples.jsonl."""
    return _check_step(row) or ("" if {"prompt", "completion"} <= set(row) else "prompt or completion is missing")


def _is_metric(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
