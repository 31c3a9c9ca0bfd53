import pytest

from jaxrlhf.report.spread import MOST_COLUMNS, ROWS, heat_strip, quantile, spread_over
from tests.report.runs import histogram


def test_counts_are_divided_by_what_bins_overlap():
    weights = spread_over([0.0, 1.0, 2.0], [4, 12], 0.0, 2.0)
    assert weights == pytest.approx([4 / (ROWS / 2)] * (ROWS // 2) + [12 / (ROWS / 2)] * (ROWS // 2))


def test_bin_without_width_goes_into_one_cell():
    weights = spread_over([2.0, 2.0], [5], 0.0, 4.0)
    assert (sum(weights), max(weights)) == (5, 5)


def test_bin_at_the_upper_end_is_kept():
    assert sum(spread_over([3.9, 4.0, 4.0], [1, 2], 0.0, 4.0)) == pytest.approx(3)


def test_quantiles():
    assert quantile([1, 1, 1, 1], 0.0, 4.0, 0.5) == 2.0
    assert quantile([0, 4, 0, 0], 0.0, 4.0, 0.25) == 1.25
    assert quantile([0, 0, 0, 1], 0.0, 4.0, 1.0) == 4.0


def test_strip_tells_steps_answers_and_middle():
    chart = heat_strip([histogram(10, 0.0), histogram(20, 5.0, unscored=3)])
    assert "steps 1 to 10: 101 answers, median" in chart
    assert "steps 11 to 20: 101 answers, median" in chart
    assert "; 3 without a score" in chart
    assert 'class="heat5"' in chart


def test_scores_that_are_all_equal():
    line = {"step": 5, "scores": {"edges": [2.0, 2.0, 2.0], "counts": [8, 0], "unscored": 0}}
    assert "8 answers, median 2" in heat_strip([line])


def test_window_without_a_score_is_empty():
    empty = {"step": 5, "scores": {"edges": [0.0, 1.0], "counts": [0], "unscored": 8}}
    assert "steps 1 to 5: no answer has a score; 8 without a score" in heat_strip([empty, histogram(10, 1.0)])


def test_neighbouring_windows_of_a_long_run_are_added_up():
    chart = heat_strip([histogram(step, 1.0) for step in range(1, 1001)])
    assert chart.count("<rect ") <= MOST_COLUMNS
    assert "steps 1 to 21: 2,121 answers" in chart


def test_steps_are_whole():
    strip = heat_strip([histogram(1, 100.0, spread=50.0), histogram(2, 100.0, spread=50.0)])
    assert ">1</text>" in strip and ">0.5</text>" not in strip
