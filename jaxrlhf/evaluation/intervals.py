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
    return _wilson(successes / count, count, count)


def pair_accuracy(scores: Sequence[np.ndarray], ranks: Sequence[np.ndarray]) -> Proportion:
    """How often the better ranked of two answers to a prompt has the larger score; a tie of scores counts one half.

    Pairs of one prompt share answers, so the interval is Wilson's with as many independent trials as give the variance
    of a ratio of sums over prompts; with the number of prompts where all or none are right.

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
    share, prompts = float(wins.sum() / pairs.sum()), int(np.sum(pairs > 0))
    residual = float(np.sum(np.square(wins - share * pairs))) * prompts / max(1, prompts - 1)
    variance = residual / float(pairs.sum()) ** 2
    trials = min(share * (1 - share) / variance, int(pairs.sum())) if variance > 0 else prompts
    return _wilson(share, trials, int(pairs.sum()))


def _wilson(share: float, trials: float, count: int) -> Proportion:
    """The Wilson interval of a share of `count` that is as certain as one of `trials` independent ones."""
    z = 1.959964
    centre = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials)) / (1 + z * z / trials)
    return Proportion(share, max(0.0, centre - half), min(1.0, centre + half), count)


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
