"""What a run's records lack: evaluations, steps, lines that can be read."""

from __future__ import annotations

from collections.abc import Iterator

from jaxrlhf.report.finding import Finding, Look
from jaxrlhf.report.folder import RunRecord
from jaxrlhf.report.numbers import plural
from jaxrlhf.report.panels import EVALUATION
from jaxrlhf.trainers.config import FEW_STEPS


def _few_steps(run: RunRecord) -> Iterator[Finding]:
    if run.exported and run.last_step < FEW_STEPS:
        yield Finding(
            "hint",
            f"The run had {plural(run.last_step, 'step')}, which teach next to nothing.",
            "Lower batch_size, or raise epochs or steps.",
        )


def _no_evaluation(run: RunRecord) -> Iterator[Finding]:
    if run.curves and not any(name.startswith(EVALUATION) for name in run.curves):
        yield Finding(
            "hint",
            "Nothing was evaluated: all curves are of the data that it learns from.",
            "Name held-out rows in eval_dataset; eval_every says how often.",
        )


def _unreadable(run: RunRecord) -> Iterator[Finding]:
    if run.problems:
        shown = "; ".join(run.problems[:3])
        more = f"; and {len(run.problems) - 3} more" if len(run.problems) > 3 else ""
        yield Finding(
            "hint",
            f"Left out {plural(len(run.problems), 'line')} that could not be read: {shown}{more}.",
            "Mend the lines, or leave them: everything else is here.",
        )


LOOKS: tuple[Look, ...] = (_few_steps, _no_evaluation, _unreadable)
