import pytest

from jaxrlhf.report.series import Point, Stretch, condense, first_value, last_value, mean_of_last, total

CURVE = [Point(1, 2.0), Point(2, None), Point(3, 4.0), Point(4, 6.0), Point(5, None)]


def test_short_curves_stay_as_they_are():
    stretches = condense(CURVE, 10)
    assert [(part.first, part.mean) for part in stretches] == [(1, 2.0), (2, None), (3, 4.0), (4, 6.0), (5, None)]
    assert all(part.first == part.last and part.low == part.mean == part.high for part in stretches)


def test_long_curves_keep_range_and_mean():
    curve = [Point(step, float(step)) for step in range(1, 101)]
    stretches = condense(curve, 4)
    assert stretches[0] == Stretch(1, 25, 1.0, 13.0, 25.0)
    assert stretches[-1] == Stretch(76, 100, 76.0, 88.0, 100.0)
    assert len(stretches) == 4


def test_a_spike_survives():
    curve = [Point(step, 1000.0 if step == 777 else 0.0) for step in range(5000)]
    assert max(part.high for part in condense(curve, 100)) == 1000.0


def test_stretch_without_a_finite_value_is_a_gap():
    assert condense([Point(1, None), Point(2, None), Point(3, 1.0), Point(4, 3.0)], 2) == [
        Stretch(1, 2, None, None, None),
        Stretch(3, 4, 1.0, 2.0, 3.0),
    ]


def test_empty_curve():
    assert condense([], 5) == []
    assert last_value([]) is first_value([]) is mean_of_last([], 0.2) is None


def test_single_numbers_pass_over_what_is_not_finite():
    assert (first_value(CURVE), last_value(CURVE), total(CURVE)) == (2.0, 6.0, 12.0)
    assert mean_of_last(CURVE, 0.2) == 6.0
    assert mean_of_last(CURVE, 0.67) == 5.0


def test_mean_does_not_leave_the_range():
    (part,) = condense([Point(step, 0.1) for step in range(10)], 1)
    assert part.low == part.mean == part.high == pytest.approx(0.1)
