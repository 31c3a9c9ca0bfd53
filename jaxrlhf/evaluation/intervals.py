"""Proportions with their uncertainty: accuracy of pairs, and the win rate of one model against another."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Proportion:
    """A share of `count` trials with its 95 % interval.

    Attributes:
        value: the share, in [0, 1].
        low: lower end of the interval.
        high: upper end of the interval.
        count: number of trials.
    """

    value: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        """The share and its interval, e.g. `0.812 [0.760, 0.855]`."""
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def proportion(successes: float, count: int) -> Proportion:
    """A share with its Wilson score interval (Wilson 1927) at 95 %.

    Args:
        successes: number of successes; a tie counts one half, for which the interval is on the wide side.
        count: number of trials, positive.

    Raises:
        ValueError: if there are no trials.
    """
    if count <= 0:
        raise ValueError("a proportion of nothing: there are no trials to count")
    z = 1.959964
    share = successes / count
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return Proportion(share, max(0.0, centre - half), min(1.0, centre + half), count)


def pair_accuracy(scores: Sequence[np.ndarray], ranks: Sequence[np.ndarray]) -> Proportion:
    """How often the better ranked of two answers to a prompt has the larger score; a tie of scores counts one half.

    Pairs of one prompt share answers, so the interval takes prompts for the independent trials: it is the normal one of
    a ratio of sums over prompts.

    Args:
        scores: for each prompt its answers' scores, [K].
        ranks: for each prompt its answers' ranks, [K], 1 is best; tied answers are no pair.

    Raises:
        ValueError: if no two answers to a prompt differ in rank.
    """
    counted = np.array([_wins(np.asarray(s, np.float64), np.asarray(r)) for s, r in zip(scores, ranks, strict=True)])
    wins, pairs = counted[:, 0], counted[:, 1]
    if not pairs.sum():
        raise ValueError("no pair to count: no two answers to a prompt differ in rank")
    share = wins.sum() / pairs.sum()
    error = math.sqrt(np.sum(np.square(wins - share * pairs))) / pairs.sum()
    return Proportion(float(share), max(0.0, share - 1.96 * error), min(1.0, share + 1.96 * error), int(pairs.sum()))


def _wins(scores: np.ndarray, ranks: np.ndarray) -> tuple[float, int]:
    better = ranks[:, None] < ranks[None, :]
    gaps = (scores[:, None] - scores[None, :])[better]
    return float(np.sum(gaps > 0) + 0.5 * np.sum(gaps == 0)), int(better.sum())


def win_rate(scores: Sequence[float] | np.ndarray, other: Sequence[float] | np.ndarray) -> Proportion:
    """How often the first of two scores on the same prompt is the larger; a tie counts one half.

    Args:
        scores: [N] scores of the model in question.
        other: [N] scores of the one it is compared with, in the same order.

    Raises:
        ValueError: if the two differ in length or are empty, or if a score is NaN, which would count as a loss.
    """
    first, second = np.asarray(scores, np.float64), np.asarray(other, np.float64)
    if first.shape != second.shape:
        raise ValueError(f"win rate of {first.shape[0]} scores against {second.shape[0]}; give one of each a prompt")
    unscored = np.flatnonzero(np.isnan(first) | np.isnan(second))
    if unscored.size:
        raise ValueError(f"win rate: {unscored.size} of {len(first)} prompts have no score (NaN), first {unscored[0]}")
    return proportion(float(np.sum(first > second) + 0.5 * np.sum(first == second)), len(first))
