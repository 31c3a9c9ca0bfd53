"""Train k steps, be stopped, resume, train k more: equal to 2k steps in one go, bit for bit."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jaxrlhf.trainers.run import Run
from tests.trainers.small import METHODS, assert_same_params, histograms, metrics, samples, train


class Killed(Exception):
    pass


@pytest.mark.parametrize("method", (*METHODS, "ppo_options"))
def test_resumed_run_equals_unbroken_one(method, tmp_path, monkeypatch):
    whole = train(method, tmp_path / "whole")

    save = Run.save

    def save_and_die(self, step, *arguments):
        save(self, step, *arguments)
        if step == 2:
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Run, "save", save_and_die)
        train(method, tmp_path / "broken")
    assert metrics(tmp_path / "broken")[-1]["step"] == 2
    resumed = train(method, tmp_path / "broken")

    assert_same_params(whole.model, resumed.model)
    assert metrics(tmp_path / "broken") == metrics(tmp_path / "whole")
    assert samples(tmp_path / "broken") == samples(tmp_path / "whole")
    assert histograms(tmp_path / "broken") == histograms(tmp_path / "whole")


def test_lines_after_the_checkpoint_are_written_anew(tmp_path, monkeypatch):
    whole = train("sft", tmp_path / "whole")
    add = Run.saves_at

    def die_at_three(self, step):
        if step == 3:
            raise Killed
        return add(self, step)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Run, "saves_at", die_at_three)
        train("sft", tmp_path / "broken")
    assert metrics(tmp_path / "broken")[-1]["step"] == 3
    resumed = train("sft", tmp_path / "broken")
    assert_same_params(whole.model, resumed.model)
    assert metrics(tmp_path / "broken") == metrics(tmp_path / "whole")


def test_a_process_killed_by_signal_resumes(tmp_path):
    """A real SIGKILL in the middle of a PPO run, between two checkpoints."""
    program = (
        "import sys; from pathlib import Path; from tests.trainers.small import train;"
        "train('ppo', Path(sys.argv[1]), steps=8, save_every=2)"
    )
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "killed")], cwd=root, env=environment)
    deadline = time.monotonic() + 300
    while not (tmp_path / "killed" / "checkpoints" / "2").exists():
        assert process.poll() is None and time.monotonic() < deadline, "the run ended before it could be killed"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()

    resumed = train("ppo", tmp_path / "killed", steps=8, save_every=2)
    whole = train("ppo", tmp_path / "whole", steps=8, save_every=2)
    assert_same_params(whole.model, resumed.model)
    assert metrics(tmp_path / "killed") == metrics(tmp_path / "whole")
    assert samples(tmp_path / "killed") == samples(tmp_path / "whole")
    assert histograms(tmp_path / "killed") == histograms(tmp_path / "whole")


def test_running_a_finished_run_again_changes_nothing(tmp_path):
    first = train("dpo", tmp_path / "run")
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    again = train("dpo", tmp_path / "run")
    assert_same_params(first.model, again.model)
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before
