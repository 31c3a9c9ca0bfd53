import itertools
import math
from fractions import Fraction

import numpy as np
import pytest

from jaxrlhf.evaluation.best_of_n import best_of_n, kl_bound, over_prompts

NAN = math.nan
SCORES = [0.3, -1.0, 2.0, 0.7, 5.0]
VALUES = [4.0, 1.0, -3.0, 0.5, 2.0]


def enumerated(scores, values):
    """The mean over all subsets of the mean value of the answers that share the highest score."""
    rows = [number for number, score in enumerate(scores) if not math.isnan(score) and not math.isnan(values[number])]
    means = []
    for n in range(1, len(scores) + 1):
        found = []
        for subset in itertools.combinations(rows, n):
            best = max(scores[number] for number in subset)
            found.append(np.mean([values[number] for number in subset if scores[number] == best]))
        means.append(np.mean(found) if found else NAN)
    return means


@pytest.mark.parametrize(
    ("scores", "values"),
    [
        (SCORES, SCORES),
        (SCORES, VALUES),
        ([1.0, 2.0, 2.0, 0.0, 2.0], VALUES),
        ([1.0, 1.0, 1.0, 1.0, 1.0], VALUES),
        ([1.0, NAN, 2.0, 2.0, NAN], VALUES),
        (SCORES, [4.0, 1.0, -3.0, NAN, 2.0]),
        ([NAN] * 5, VALUES),
    ],
    ids=["scores", "values", "ties", "all tied", "unscored", "unvalued", "nothing"],
)
def test_the_mean_over_all_subsets(scores, values):
    (found,) = best_of_n(np.array([scores]), np.array([values]))
    np.testing.assert_allclose(found, enumerated(scores, values), rtol=1e-12)


def test_prompts_with_unlike_counts_stay_apart():
    scores = np.array([SCORES, [1.0, NAN, 3.0, NAN, NAN], [NAN] * 5, [2.0, 2.0, 1.0, 0.0, NAN]])
    expected = [enumerated(row, row) for row in scores.tolist()]
    np.testing.assert_allclose(best_of_n(scores), expected, rtol=1e-12)


def test_of_one_it_is_the_mean_and_of_all_the_best():
    scores, values = np.random.default_rng(0).normal(size=(2, 7, 16))
    found = best_of_n(scores, values)
    np.testing.assert_allclose(found[:, 0], values.mean(axis=1), rtol=1e-12)
    np.testing.assert_array_equal(found[:, -1], values[np.arange(7), scores.argmax(axis=1)])


def test_a_thousand_answers_lose_no_digits():
    """Against fractions of whole binomials; the last answer but two is the only one worth anything."""
    count = 1500
    (found,) = best_of_n(np.arange(count)[None, :], np.eye(1, count, count - 3))
    for n in (1, 2, 750, 1498, 1499, 1500):
        exact = Fraction(math.comb(count - 3, n - 1), math.comb(count, n))
        assert found[n - 1] == pytest.approx(float(exact), rel=1e-12, abs=0)
    assert np.isfinite(best_of_n(np.ones((1, 4000)))).all()


def test_means_and_standard_errors_over_the_prompts_that_count():
    curve = over_prompts(np.array([[1.0, 2.0, 7.0], [3.0, 6.0, NAN], [8.0, NAN, NAN]]))
    np.testing.assert_allclose(curve.values, [4.0, 4.0, 7.0])
    np.testing.assert_allclose(curve.errors, [math.sqrt(13 / 3), 2.0, NAN])  # variances 13 of 3, 8 of 2
    assert curve.prompts.tolist() == [3, 2, 1]
    assert np.isnan(over_prompts(np.full((2, 3), NAN)).values).all()


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"scores \(2, 3\) and values \(2, 4\) must be \[P, N\] both"):
        best_of_n(np.zeros((2, 3)), np.zeros((2, 4)))


@pytest.mark.parametrize("scores", [[0, 1, 2, 3], [0, 1, 1, 3]], ids=["no ties", "ties"])
@pytest.mark.parametrize("n", [2, 4, 8])
def test_the_kl_stays_below_its_bound(scores, n):
    """A policy over four answers: its best-of-n drawn a hundred thousand times, and written out exactly."""
    policy, scores = np.array([0.1, 0.2, 0.3, 0.4]), np.array(scores)
    drawn = np.random.default_rng(0).choice(4, size=(100_000, n), p=policy)
    best = drawn[np.arange(len(drawn)), scores[drawn].argmax(axis=1)]  # the first of a tie, which is any of them
    sampled = np.bincount(best, minlength=4) / len(drawn)

    at_most = np.array([policy[scores <= score].sum() for score in scores]) ** n
    below = np.array([policy[scores < score].sum() for score in scores]) ** n
    tied = np.array([policy[scores == score].sum() for score in scores])
    exact = (at_most - below) * policy / tied
    np.testing.assert_allclose(sampled, exact, atol=0.006)
    kl = np.sum(exact * np.log(exact / policy))
    assert 0 < kl < kl_bound(n)
    assert np.sum(sampled * np.log(np.maximum(sampled, 1e-9) / policy)) == pytest.approx(kl, abs=0.02)


def test_the_bound_in_numbers():
    np.testing.assert_allclose(kl_bound(np.array([1, 4])), [0.0, math.log(4) - 0.75], rtol=1e-15)


def test_without_ties_the_bound_is_the_kl():
    """Ten thousand equally likely answers, no two of one score: the best of 4 is within a thousandth of it."""
    share = np.arange(10_001) / 10_000
    exact = np.diff(share**4)
    assert np.sum(exact * np.log(exact * 10_000)) == pytest.approx(float(kl_bound(4)), abs=1e-3)
