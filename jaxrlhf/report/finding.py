"""What a finding is, and what those who look for one have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

from jaxrlhf.report.folder import RunRecord
from jaxrlhf.report.panels import EVALUATION
from jaxrlhf.report.series import Curve

RECENT = 0.2
"""The part of a run that is its present: single lines are too noisy to judge, and the beginning is another model."""


class Finding(NamedTuple):
    """Something to look at: how grave it is, what was seen, and what to do."""

    level: Literal["problem", "hint"]
    seen: str
    advice: str


Look = Callable[[RunRecord], Iterator[Finding]]
"""Yields what it finds in a run."""


def held_out_or_own(run: RunRecord, name: str) -> Curve:
    """The metric of evaluations if there are two at least, else of training."""
    evaluated = run.curve(EVALUATION + name)
    return evaluated if len(evaluated) > 1 or not run.curve(name) else run.curve(name)


def closer_to_the_reference(run: RunRecord) -> list[str]:
    """What keeps a policy nearer to its reference, as its method calls it; rejection sampling has nothing."""
    if run.setting("ppo.kl_target") is not None:
        return ["lower ppo.kl_target"]
    return {"PPO": ["raise ppo.kl_coef"], "GRPO": ["raise grpo.kl_coef"]}.get(run.method, [])


def advised(*parts: str) -> str:
    """A sentence of things to do, any of them."""
    *first, last = parts
    text = f"{', '.join(first)}, or {last}." if first else f"{last}."
    return text[0].upper() + text[1:]
