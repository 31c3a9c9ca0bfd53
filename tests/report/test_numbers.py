import pytest

from jaxrlhf.report.numbers import duration, percent, plural, short, tick_labels, ticks, usable


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0.0, "0"),
        (-0.0, "0"),
        (2.36227, "2.362"),
        (-0.5, "−0.5"),
        (1234.5, "1,234"),
        (3e-6, "3e−6"),
        (-1.234e-5, "−1.23e−5"),
        (2.5e9, "2.5e9"),
        (24.0, "24"),
    ],
)
def test_short(value, text):
    assert short(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(5.25, "5.2 s"), (59.99, "60.0 s"), (245, "4:05 min"), (7210, "2:00:10 h")]
)
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_plural_and_percent():
    assert [plural(1, "step"), plural(2000, "step"), percent(0.996)] == ["1 step", "2,000 steps", "100 %"]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 10, [0, 2, 4, 6, 8, 10]),
        (2.3, 3.9, [2.5, 3.0, 3.5]),
        (-1.0, 1.0, [-1.0, -0.5, 0.0, 0.5, 1.0]),
        (0, 50_000, [0, 10_000, 20_000, 30_000, 40_000, 50_000]),
        (1e-6, 4e-6, [1e-6, 2e-6, 3e-6, 4e-6]),
    ],
)
def test_ticks_are_round_and_few(low, high, expected):
    assert ticks(low, high, at_most=6) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ([2.5, 3.0, 3.5], ["2.5", "3.0", "3.5"]),
        ([-1, 0, 1], ["−1", "0", "1"]),
        ([0, 500, 1000], ["0", "500", "1,000"]),
        ([0, 20_000, 40_000], ["0", "20k", "40k"]),
        ([0, 1.5e6], ["0", "1.5M"]),
        ([0.0005, 0.0010], ["0.0005", "0.0010"]),
        ([0, 1e-6, 2e-6], ["0", "1e−6", "2e−6"]),
        ([0, 5e-5, 1e-4], ["0.0", "0.5e−4", "1.0e−4"]),
    ],
)
def test_labels_of_ticks_agree_in_decimals(values, labels):
    assert tick_labels(values) == labels


@pytest.mark.parametrize("value", [None, True, "1", [1], float("nan"), float("-inf"), 1e200, 10**400])
def test_what_is_no_finite_number_is_none(value):
    assert usable(value) is None


def test_finite_numbers_are_floats():
    assert usable(3) == 3.0 and isinstance(usable(3), float)
