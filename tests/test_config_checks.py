from __future__ import annotations

import dataclasses
from typing import Literal

import pytest

from jaxrlhf.config_checks import check, is_pattern, not_negative, positive


@dataclasses.dataclass(frozen=True, kw_only=True)
class Oven:
    heat: Literal["top", "bottom"] = "top"
    programme: Literal["bread", "cake"] | None = None
    minutes: int | None = 5
    degrees: float = 180.0
    label: str = "top"

    def __post_init__(self) -> None:
        check(self, *positive(self, "minutes"), *not_negative(self, "degrees"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grill(Oven):
    rack: Literal[1, 2, 3] = 1


def test_what_is_in_range_passes():
    Oven(heat="bottom", programme="cake", minutes=1, degrees=0.0, label="whatever")
    Oven(programme=None, minutes=None)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"heat": "botom"}, "heat='botom' is unknown; expected one of 'top', 'bottom'; did you mean 'bottom'?"),
        ({"heat": None}, "heat=None is unknown; expected one of 'top', 'bottom'"),
        ({"programme": "soup"}, "programme='soup' is unknown; expected one of 'bread', 'cake', None"),
        ({"minutes": 0}, "minutes=0 must be positive"),
        ({"degrees": -0.5}, "degrees=-0.5 must not be negative"),
        ({"degrees": float("nan")}, "degrees=nan must not be negative"),
    ],
)
def test_what_is_wrong_is_named_with_what_was_expected(fields, message):
    with pytest.raises(ValueError) as error:
        Oven(**fields)
    assert str(error.value) == message


def test_choices_of_subclasses_are_checked_beside_those_of_the_base():
    with pytest.raises(ValueError, match="heat='sides' is unknown.*; rack=4 is unknown; expected one of 1, 2, 3"):
        Grill(heat="sides", rack=4)  # pyright: ignore[reportArgumentType]  (which is what is tested)


def test_everything_is_reported_at_once():
    with pytest.raises(ValueError, match="programme='tea' is unknown.*; minutes=-1 must be positive; degrees=-1"):
        Oven(programme="tea", minutes=-1, degrees=-1)  # pyright: ignore[reportArgumentType]  (which is what is tested)


def test_regular_expressions_are_told_from_other_texts():
    assert is_pattern("(q|v)_proj") and not is_pattern("(q_proj")
