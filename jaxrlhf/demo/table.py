"""What the demo prints: the table of policies, the goals below it, and answers to look at."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jaxrlhf.evaluation.intervals import Proportion, win_rate


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """One policy on N held-out prompts, an answer to each.

    Attributes:
        name: of the policy.
        gold: [N] gold scores.
        reward: [N] scores by the reward model.
        kl: nats a sequence from SFT.
        kl_is_bound: whether `kl` is an upper bound and not an estimate.
        length: mean number of tokens.
        answers: the N answers.
    """

    name: str
    gold: np.ndarray
    reward: np.ndarray
    kl: float
    kl_is_bound: bool = False
    length: float
    answers: list[str]

    def wins_against(self, other: Result) -> Proportion:
        """How often the gold score is above the other's on the same prompt."""
        return win_rate(self.gold, other.gold)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Goal:
    """A number that the demo should reach.

    Attributes:
        what: the number in words.
        found: its value.
        bound: what it should reach.
        at_most: whether reaching is staying at or below.
    """

    what: str
    found: float
    bound: float
    at_most: bool = False

    @property
    def met(self) -> bool:
        """Whether the goal is reached; NaN reaches nothing."""
        return self.found <= self.bound if self.at_most else self.found >= self.bound


def results_table(results: Sequence[Result]) -> Table:
    """One row a policy; the first is the one that win rates are against."""
    baseline, *_ = results
    table = Table(box=SIMPLE_HEAD)
    table.add_column("policy", no_wrap=True)
    for heading in ("gold", "reward", "KL", "length", "win rate [95 %]"):
        table.add_column(heading, justify="right", no_wrap=True)
    for result in results:
        table.add_row(
            result.name,
            f"{result.gold.mean():.2f}",
            f"{result.reward.mean():.2f}",
            f"{'<= ' if result.kl_is_bound else ''}{result.kl:.2f}",
            f"{result.length:.1f}",
            "" if result is baseline else str(result.wins_against(baseline)),
        )
    return table


def goals_table(goals: Sequence[Goal], *, tick: str = "✓") -> Table:
    """One row a goal, marked where it is missed.

    Args:
        goals: what was wanted and found.
        tick: the mark of a goal that is met.
    """
    table = Table(box=SIMPLE_HEAD)
    table.add_column("goal")
    for heading in ("found", "wanted"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for goal in goals:
        wanted = f"{'<=' if goal.at_most else '>='} {goal.bound:.3f}"
        mark = Text(tick, "green") if goal.met else Text("missed", "bold red")
        table.add_row(goal.what, f"{goal.found:.3f}", wanted, mark)
    return table


def answers_table(prompt: str, results: Sequence[Result], number: int) -> Table:
    """Each policy's answer to the prompt of this number, behind its gold score."""
    table = Table(box=None, title=Text(prompt, "bold"), title_justify="left", show_header=False, pad_edge=False)
    table.add_column("policy", no_wrap=True)
    table.add_column("gold", justify="right", no_wrap=True)
    table.add_column("answer")
    for result in results:
        table.add_row(f"  {result.name}", f"{result.gold[number]:.1f}", Text(result.answers[number]))
    return table


def show(console: Console, results: Sequence[Result], goals: Sequence[Goal], prompts: Sequence[str]) -> None:
    """Prints it all, with the answers to the first three prompts.

    Args:
        console: where to.
        results: of the policies, the one that others are compared with first.
        goals: what they should reach.
        prompts: the N prompts of the results.
    """
    console.print(f"\n{len(prompts)} held-out prompts; win rates are by gold, against {results[0].name}:")
    console.print(results_table(results))
    console.print(goals_table(goals, tick="ok" if console.options.ascii_only else "✓"))
    for number, prompt in enumerate(prompts[:3]):
        console.print(answers_table(prompt, results, number))
        console.print()
