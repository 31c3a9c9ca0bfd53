import re

from jaxrlhf.report.lines import COLUMNS, Marks, Series, colour_class, line_chart
from jaxrlhf.report.series import Point


def _curve(values):
    return [Point(step, value) for step, value in enumerate(values)]


def _path(chart, name):
    return re.findall(rf'<path d="([^"]*)" class="{name}"', chart)


def test_each_series_has_a_line_of_its_colour():
    chart = line_chart("loss", [Series("a", _curve([1, 2, 3]), 0), Series("b", _curve([3, 1]), 1, dashed=True)], 10)
    assert [path.count("L") for path in _path(chart, "line")] == [2, 1]
    assert '<g class="c0">' in chart and '<g class="c1 dashed">' in chart
    assert 'aria-label="loss"' in chart


def test_ninth_colour_is_the_first():
    assert (colour_class(7), colour_class(8)) == ("c7", "c0")


def test_gap_breaks_the_line():
    (path,) = _path(line_chart("loss", [Series("a", _curve([1, 2, None, 2, 1]), 0)], 10), "line")
    assert (path.count("M"), path.count("L")) == (2, 2)


def test_one_point_is_a_dot():
    chart = line_chart("loss", [Series("a", [Point(10, 0.5)], 0)], 10)
    assert len(_path(chart, "dots")) == 1
    assert "a: 0.5 at step 10" in chart


def test_long_curve_is_a_mean_within_a_band():
    chart = line_chart("loss", [Series("a", _curve([step % 7 for step in range(5000)]), 0)], 50)
    (line,), (band,) = _path(chart, "line"), _path(chart, "band")
    assert line.count("L") == 49
    assert (band.count("L"), band[-1]) == (99, "Z")
    assert _path(chart, "dots") == []


def test_lonely_points_of_a_long_curve_are_dots():
    values = [1.0 if step % 3 == 0 else None for step in range(99)]
    (dots,) = _path(line_chart("loss", [Series("a", _curve(values), 0)], 99), "dots")
    assert dots.count("M") == 33


def test_columns_tell_values_and_ranges():
    chart = line_chart("loss", [Series("a", _curve([1, 2, 3]), 0), Series("b", _curve([5]), 1)], 10)
    assert "<title>a: 1 at step 0\nb: 5 at step 0</title>" in chart
    assert "<title>a: 3 at step 2</title>" in chart
    long = line_chart("loss", [Series("a", _curve(list(range(1000))), 0)], 10)
    assert "a: 49.5 (0 to 99) at steps 0 to 99" in long


def test_columns_are_few():
    chart = line_chart("loss", [Series("a", _curve(list(range(500))), 0)], 500)
    assert 20 <= chart.count("<rect ") <= COLUMNS


def test_marks_are_drawn_where_they_happened():
    marks = Marks(resumed=[5], skipped=[2, 8])
    chart = line_chart("loss", [Series("a", _curve(range(11)), 0)], 20, marks)
    (resumed,), (skipped,) = _path(chart, "resumed"), _path(chart, "skipped")
    assert (resumed.count("M"), skipped.count("M")) == (1, 2)
    left, right = (int(x) for x in re.findall(r"M(\d+)", skipped))
    assert left < int(re.findall(r"M(\d+)", resumed)[0]) < right


def test_many_marks_are_no_more_than_pixels():
    chart = line_chart("loss", [Series("a", _curve(range(11)), 0)], 20, Marks(skipped=[5] * 10_000))
    (skipped,) = _path(chart, "skipped")
    assert skipped.count("M") == 1


def test_steps_are_whole():
    chart = line_chart("loss", [Series("a", [Point(1, 10.0), Point(2, 30.0)], 0)], 20)
    assert ">1</text>" in chart and ">0.5</text>" not in chart and ">1.5</text>" not in chart
