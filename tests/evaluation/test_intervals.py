import math

import numpy as np
import pytest

from jaxrlhf.evaluation.intervals import proportion, win_rate


def test_the_wilson_interval_by_hand():
    found = proportion(8, 10)
    # z^2 = 3.8415: centre (0.8 + 0.19207) / 1.38415 = 0.71674, half-width 1.95996 * sqrt(0.016 + 0.0096036) / 1.38415.
    half = 1.959964 * math.sqrt(0.8 * 0.2 / 10 + 3.841459 / 400) / 1.3841459
    np.testing.assert_allclose([found.low, found.high], [0.716740 - half, 0.716740 + half], atol=1e-5)
    assert (found.value, found.count) == (0.8, 10)
    assert str(found) == "0.800 [0.490, 0.943]"


def test_nothing_and_everything_have_an_interval_within_0_and_1():
    none, all_ = proportion(0, 10), proportion(10, 10)
    assert none.low == 0.0 and none.high == pytest.approx(3.841459 / 13.841459)  # z^2 / (n + z^2)
    assert 1.0 - 1e-12 < all_.high <= 1.0 and all_.low == pytest.approx(10 / 13.841459)


def test_more_trials_narrow_the_interval():
    few, many = proportion(8, 10), proportion(800, 1000)
    assert few.low < many.low < 0.8 < many.high < few.high


def test_the_interval_covers_the_truth_as_often_as_it_says():
    counts = np.random.default_rng(0).binomial(40, 0.3, size=4000)
    covered = [proportion(count, 40).low <= 0.3 <= proportion(count, 40).high for count in counts.tolist()]
    assert 0.93 < np.mean(covered) < 0.97


@pytest.mark.parametrize("count", [0, -1])
def test_no_trials_are_an_error(count: int):
    with pytest.raises(ValueError, match="no trials"):
        proportion(0, count)


def test_a_tie_counts_one_half():
    assert win_rate([1.0, 2.0, 3.0, 4.0], [0.0, 2.0, 5.0, 4.0]).value == (1 + 0.5 + 0 + 0.5) / 4
    assert win_rate(np.ones(7), np.ones(7)).value == 0.5


def test_win_rates_of_two_models_add_up_to_1():
    first, second = np.random.default_rng(0).integers(0, 3, (2, 50))
    one, other = win_rate(first, second), win_rate(second, first)
    assert one.value + other.value == pytest.approx(1.0)
    assert one.low == pytest.approx(1.0 - other.high) and one.count == 50


def test_scores_that_cannot_be_compared_are_an_error():
    with pytest.raises(ValueError, match="win rate of 2 scores against 3"):
        win_rate([1.0, 2.0], [1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="no trials"):
        win_rate([], [])
    with pytest.raises(ValueError, match=r"2 of 3 prompts have no score \(NaN\), first 1"):
        win_rate([1.0, math.nan, 2.0], [1.0, 2.0, math.nan])
