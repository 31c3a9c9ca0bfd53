import io
import math

import numpy as np
import pytest
from rich.console import Console

from jaxrlhf.demo.table import Goal, Result, answers_table, goals_table, results_table, show


def _result(name: str, gold: list[float], **changes) -> Result:
    fields = {"reward": np.array(gold) / 2, "kl": 0.0, "length": 12.25, "answers": [f"{name} says {n}" for n in gold]}
    return Result(name=name, gold=np.array(gold), **{**fields, **changes})


SFT = _result("SFT", [1.0, 2.0, 3.0, 4.0])
PPO = _result("PPO", [2.0, 3.0, 3.0, 3.0], kl=4.567)
BEST = _result("best of 4", [2.0, 3.0, 4.0, 5.0], kl=0.636, kl_is_bound=True)


def _printed(*things, encoding: str = "utf-8") -> str:
    buffer = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    console = Console(file=buffer, width=80, highlight=False)
    for thing in things:
        console.print(thing) if not callable(thing) else thing(console)
    buffer.flush()
    buffer.seek(0)
    return buffer.read()


def _cells(text: str, first: str) -> list[str]:
    (line,) = (line for line in text.splitlines() if line.strip().startswith(first))
    return line.split()


def test_each_policy_has_a_row_of_its_means():
    text = _printed(results_table([SFT, BEST, PPO]))
    assert _cells(text, "SFT") == ["SFT", "2.50", "1.25", "0.00", "12.2"]
    assert _cells(text, "PPO")[:5] == ["PPO", "2.75", "1.38", "4.57", "12.2"]
    assert _cells(text, "best of 4")[5:7] == ["<=", "0.64"]


def test_win_rates_are_by_gold_against_the_first_and_count_ties_one_half():
    assert PPO.wins_against(SFT).value == 2.5 / 4
    assert _cells(_printed(results_table([SFT, PPO])), "PPO")[5:] == ["0.625", *str(PPO.wins_against(SFT)).split()[1:]]


@pytest.mark.parametrize(
    ("found", "bound", "at_most", "met"),
    [(1.0, 1.0, False, True), (0.99, 1.0, False, False), (14.9, 15.0, True, True), (15.1, 15.0, True, False)],
)
def test_goals_are_met_from_the_right_side(found: float, bound: float, at_most: bool, met: bool):
    assert Goal(what="a number", found=found, bound=bound, at_most=at_most).met is met


def test_nan_meets_nothing():
    assert not Goal(what="a number", found=math.nan, bound=1.0).met
    assert not Goal(what="a number", found=math.nan, bound=1.0, at_most=True).met


def test_a_missed_goal_is_marked():
    goals = [Goal(what="reached", found=2.0, bound=1.0), Goal(what="unreached", found=0.5, bound=1.0)]
    text = _printed(goals_table(goals))
    assert _cells(text, "reached") == ["reached", "2.000", ">=", "1.000", "✓"]
    assert _cells(text, "unreached") == ["unreached", "0.500", ">=", "1.000", "missed"]


def test_answers_stand_under_their_prompt_with_their_scores():
    lines = [line.split() for line in _printed(answers_table("[b] a prompt :", [SFT, PPO], 1)).splitlines()]
    assert lines == [
        ["[b]", "a", "prompt", ":"],
        ["SFT", "2.0", "SFT", "says", "2.0"],
        ["PPO", "3.0", "PPO", "says", "3.0"],
    ]


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_everything_fits_80_columns_in_any_encoding(encoding: str):
    goals = [Goal(what="reached", found=2.0, bound=1.0), Goal(what="unreached", found=0.5, bound=1.0)]
    results = [SFT, BEST, PPO]
    text = _printed(
        lambda console: show(console, results, goals, ["one :", "two :", "three :", "four :"]), encoding=encoding
    )
    assert max(map(len, text.splitlines())) <= 80
    assert "three :" in text and "four :" not in text
    assert text.count("missed") == 1
    assert ("✓" in text) == (encoding == "utf-8")
