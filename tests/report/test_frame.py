import pytest

from jaxrlhf.report.frame import (
    ANY,
    HEIGHT,
    NOT_NEGATIVE,
    RIGHT,
    SHARE,
    WIDTH,
    Column,
    axes,
    columns,
    make_frame,
    path_of,
)


def test_values_lie_within_the_frame():
    frame = make_frame([0, 40], [2.0, 4.0])
    assert frame.y[0] < 2.0 and frame.y[1] > 4.0
    assert frame.at(0, 2.0)[0] == frame.left
    assert frame.at(40, 4.0)[0] == WIDTH - RIGHT
    assert 0 < frame.at(0, 4.0)[1] < frame.at(0, 2.0)[1] < HEIGHT


@pytest.mark.parametrize("value", [0.0, 3e-6, -5.0, 1e90])
def test_constant_has_room_above_and_below(value):
    frame = make_frame([0, 1], [value, value])
    assert frame.y[0] < value < frame.y[1]
    assert frame.y_ticks


@pytest.mark.parametrize(
    ("values", "limits", "expected"),
    [
        ([1.0, 1.0], SHARE, (0.5, 1.0)),
        ([0.0, 0.0], SHARE, (0.0, 1.0)),
        ([0.0, 1.0], SHARE, (0.0, 1.0)),
        ([0.0, 0.0], NOT_NEGATIVE, (0.0, 1.0)),
        ([0.0, 0.0], ANY, (-1.0, 1.0)),
    ],
)
def test_axis_ends_where_its_values_must(values, limits, expected):
    assert make_frame([0, 1], values, limits).y == expected


def test_value_beyond_the_limits_is_shown():
    assert make_frame([0, 1], [-2.0, 3.0], NOT_NEGATIVE).y[0] < -2.0


@pytest.mark.parametrize("last", [1, 2, 3, 40])
def test_steps_are_whole(last):
    ticks = make_frame([0, last], [1.0], steps=True).x_ticks
    assert len(ticks) > 1 and all(tick == round(tick) for tick in ticks)


def test_a_single_step_0_has_an_axis():
    assert make_frame([0], [1.0]).x == (0, 1.0)


def test_margin_grows_with_the_labels():
    assert make_frame([0, 1], [1.00001, 1.00002]).left > make_frame([0, 1], [1, 5]).left


def test_axes_tell_round_numbers():
    drawn = axes(make_frame([0, 40], [2.0, 4.0]), "step")
    assert all(f">{text}</text>" in drawn for text in ("step", "0", "10", "40", "2.0", "2.5", "4.0"))


def test_columns_tell_what_is_under_them():
    drawn = columns(make_frame([0, 10], [0, 1]), [Column(0, 5, "a < b"), Column(5, 10, "c")])
    assert drawn.count("<rect ") == 2
    assert "<title>a &lt; b</title>" in drawn


def test_path_is_broken_where_there_is_no_value():
    assert path_of([(1, 2), (3, 4.25), None, (5, 6)]) == "M1 2L3 4.2M5 6"
