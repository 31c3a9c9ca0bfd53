"""Where the time of a run went, and how fast each phase was."""

from __future__ import annotations

import statistics
from typing import NamedTuple

from jaxrlhf.report.folder import RunRecord
from jaxrlhf.report.series import finite, total

OTHER = "other"
"""What the phases leave of the time: logging, saving, waiting for data."""


class Phase(NamedTuple):
    """A phase of all iterations together, and the rate of the median line; none where tokens were not counted."""

    name: str
    seconds: float
    tokens_per_s: float | None


def phases_of(run: RunRecord) -> list[Phase]:
    """The phases of training in order, and what they leave of the time; none if nothing was measured.

    A line of metrics tells the time since the line before, so that sums over lines are those of the run. Runs that do
    not tell phases apart have one, `train`.
    """
    whole = total(run.curve("time/iteration_s"))
    names = [name[5:-2] for name in run.curves if name.startswith("time/") and name.endswith("_s")]
    names = [name for name in names if name != "iteration" and not name.endswith("_per")]
    phases = [_phase(run, name, total(run.curve(f"time/{name}_s"))) for name in names]
    if not phases:
        return [_phase(run, "train", whole)] if whole else []
    rest = whole - sum(phase.seconds for phase in phases)
    return [*phases, Phase(OTHER, rest, None)] if rest > 0 else phases


def seconds_a_step(run: RunRecord) -> float | None:
    """Of the median line of metrics: the first one compiles, as does that after each break."""
    lines = finite(run.curve("time/iteration_s"))
    before = [0, *(step for step, _ in lines)]
    paces = [seconds / (step - last) for (step, seconds), last in zip(lines, before, strict=False) if step > last]
    return statistics.median(paces) if paces else None


def _phase(run: RunRecord, name: str, seconds: float) -> Phase:
    rates = [rate for _, rate in finite(run.curve(f"time/{name}_tokens_per_s"))]
    return Phase(name, seconds, statistics.median(rates) if rates else None)
