import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from jaxrlhf import cli
from jaxrlhf.demo import command
from jaxrlhf.demo.config import DemoConfig, Sizes
from tests.demo.small import SMALL

OVERRIDES = [f"sizes.{name}={value}" for name, value in vars(SMALL).items()]


class Walked(NamedTuple):
    """The folder of one small demo, what it printed, and its exit status."""

    out: Path
    printed: str
    status: int


def _walk(out: Path) -> Walked:
    """Runs the demo as a user does: in a process of its own, which sees one device and so compiles quickly."""
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=1"
    done = subprocess.run(
        [sys.executable, "-m", "jaxrlhf", "demo", f"out={out}", *OVERRIDES],
        env={**os.environ, "XLA_FLAGS": flags, "PYTHONUTF8": "1"},
        capture_output=True,
        encoding="utf-8",
    )
    return Walked(out, done.stdout, done.returncode)


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> Walked:
    return _walk(tmp_path_factory.mktemp("demo") / "run")


def test_it_says_that_it_is_a_toy(walked):
    assert "This is a toy" in walked.printed


def test_the_table_has_a_row_for_each_policy(walked):
    lines = walked.printed.split("held-out prompts; win rates")[1].splitlines()
    heading = next(line for line in lines if "policy" in line)
    assert heading.split() == ["policy", "gold", "reward", "KL", "length", "win", "rate", "[95", "%]"]
    start = lines.index(heading) + 2
    assert [line[2:12].strip() for line in lines[start : start + 4]] == ["SFT", "best of 4", "DPO", "PPO"]


def test_missed_goals_are_marked_and_the_exit_status_is_0(walked):
    (line,) = (line for line in walked.printed.splitlines() if "PPO: win rate" in line)
    assert line.split()[-1] == "missed"
    assert walked.status == 0


def test_three_prompts_are_shown_with_answers(walked):
    assert walked.printed.count("describe the") >= 3
    assert "GB of memory" in walked.printed


def test_every_stage_has_a_run_in_the_folder(walked):
    runs = {"pretrain", "sft", "reward", "ppo", "dpo"}
    assert {path.name for path in walked.out.iterdir()} == runs | {"report.html"}
    assert all((walked.out / run / "export" / "config.json").exists() for run in runs)


@pytest.mark.slow
def test_running_again_takes_no_step_and_finds_the_same(walked):
    before = {path: path.read_bytes() for path in walked.out.rglob("metrics.jsonl")}
    assert _numbers(_walk(walked.out).printed) == _numbers(walked.printed)
    assert {path: path.read_bytes() for path in walked.out.rglob("metrics.jsonl")} == before


def test_another_seed_in_the_folder_is_refused(walked, capsys):
    assert cli.main(["demo", f"out={walked.out}", "seed=1", *OVERRIDES]) == 2
    assert "holds a run with another configuration" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": 12}, "hidden_size=12 must be a multiple of 8"),
        ({"ppo_steps": 0}, "ppo_steps=0 must be positive"),
        ({"held_out_prompts": 257}, r"held_out_prompts=257 must lie in 3 \.\.\. 256"),
    ],
)
def test_sizes_that_cannot_be_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        Sizes(**change)


def test_a_negative_seed_is_refused():
    with pytest.raises(ValueError, match="seed=-1 must not be negative"):
        DemoConfig(seed=-1)


def test_goals_compare_with_sft():
    def result(name: str, gold: list[float], kl: float) -> command.Result:
        zeros = np.zeros(4)
        return command.Result(name=name, gold=np.array(gold), reward=zeros, kl=kl, length=1.0, answers=[""] * 4)

    sft, best = result("SFT", [0.0, 2.0, 0.0, 2.0], 0.0), result("best of 4", [2.0] * 4, 0.6)
    dpo, ppo = result("DPO", [1.0, 1.0, 0.0, 1.0], 3.0), result("PPO", [3.0, 3.0, 3.0, 1.0], 16.0)
    gain, ppo_wins, ppo_kl, dpo_wins = command.goals_of([sft, best, dpo, ppo])
    assert (gain.found, gain.met) == (1.5, True)
    assert (ppo_wins.found, ppo_wins.met) == (0.75, True)
    assert (ppo_kl.found, ppo_kl.met) == (16.0, False)
    assert (dpo_wins.found, dpo_wins.met) == (0.375, False)


def _numbers(printed: str) -> str:
    """From the table on, without the time that it took."""
    return printed.split("held-out prompts; win rates")[1].rsplit("took", 1)[0]
