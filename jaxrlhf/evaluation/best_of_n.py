"""Best-of-n: what the answer with the highest score of n is worth, and how far from the policy it was taken."""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Curve:
    """Means over prompts of what the best of n answers is worth; entry n - 1 is about n.

    Attributes:
        values: [N] float64, the mean over prompts; NaN where no prompt counts.
        errors: [N] float64, its standard error; NaN where fewer than two prompts count.
        prompts: [N] int64, the prompts that count: those with n scored answers or more.
    """

    values: np.ndarray
    errors: np.ndarray
    prompts: np.ndarray


def best_of_n(scores: np.ndarray, values: np.ndarray | None = None) -> np.ndarray:
    """What the answer with the highest score of n is worth, estimated from N answers to each prompt.

    For every n at once the mean over all subsets of n of the N answers, hence without bias: with scores ascending and i
    from 1, sum_i value_(i) C(i - 1, n - 1) / C(N, n) (Nakano et al. 2021; Gao et al. 2023, appendix). Where the highest
    score of a subset is shared, the answers that share it count equally.

    Args:
        scores: [P, N] float array, by which the best is chosen; NaN where nobody has an opinion.
        values: [P, N] float array, what answers are worth to somebody else; None means their scores.

    Returns:
        [P, N] float64, entry [p, n - 1] about n. An answer without a score or without a value is left out; where a
        prompt has fewer than n left, NaN.

    Raises:
        ValueError: if the two are not matrices of one shape.
    """
    scores = np.asarray(scores, np.float64)
    values = scores if values is None else np.asarray(values, np.float64)
    if scores.ndim != 2 or values.shape != scores.shape:
        raise ValueError(f"best of n: scores {scores.shape} and values {values.shape} must be [P, N] both")
    scores = np.where(np.isnan(values), np.nan, scores)
    order = np.argsort(scores, axis=1, kind="stable")  # NaN comes last
    scores, values = (np.take_along_axis(array, order, axis=1) for array in (scores, values))
    counts = np.sum(~np.isnan(scores), axis=1)
    estimates = np.full(scores.shape, np.nan)
    for count in np.unique(counts[counts > 0]):
        rows = counts == count
        shared = _means_of_ties(scores[rows, :count], values[rows, :count])
        estimates[rows, :count] = shared @ _chances(count).T
    return estimates


def over_prompts(estimates: np.ndarray) -> Curve:
    """Averages the estimates [P, N] of `best_of_n` over prompts."""
    counted = ~np.isnan(estimates)
    prompts = np.sum(counted, axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):  # of no prompt there is no mean, of one no spread
        means = np.sum(estimates, axis=0, where=counted) / prompts
        squares = np.sum(np.square(estimates - means), axis=0, where=counted)
        errors = np.sqrt(squares / (prompts - 1) / prompts)
    return Curve(values=means, errors=errors, prompts=prompts)


def kl_bound(n: int | np.ndarray) -> np.ndarray:
    """An upper bound of KL(best of n || drawn) in nats, of the best to what it was drawn from: log n - (n - 1) / n.

    What answers are drawn from is the policy itself only at temperature 1 without top-k and top-p; to the policy at
    temperature 1 the KL of what other settings draw can be larger.

    It is the KL itself only where no two answers have the same score, which holds for no policy over finitely many
    texts; where few answers are likely, the KL is far below (Beirami et al. 2024).
    """
    return np.log(n) - (n - 1) / np.asarray(n)


def _chances(count: int) -> np.ndarray:
    """[count, count] the chance C(i - 1, n - 1) / C(count, n) that the best of n is the i-th, scores ascending.

    A product from the top down, n / count times (i - n) / (i - 1) for each step, loses no digits, where the logarithms
    of factorials of thousands would lose four. What underflows is 0.
    """
    n, i = np.arange(1, count + 1)[:, None], np.arange(count, 1, -1)[None, :]
    steps = np.concatenate([n / count, np.maximum(i - n, 0) / (i - 1)], axis=1)
    return np.cumprod(steps, axis=1)[:, ::-1]


def _means_of_ties(scores: np.ndarray, values: np.ndarray) -> np.ndarray:
    """[P, N] values, each replaced by the mean over the answers to the prompt with the same score, which ascends."""
    first = np.ones(scores.shape, bool)
    first[:, 1:] = scores[:, 1:] != scores[:, :-1]
    groups = np.cumsum(first.ravel()) - 1
    means = np.bincount(groups, weights=values.ravel()) / np.bincount(groups)
    return means[groups].reshape(values.shape)
