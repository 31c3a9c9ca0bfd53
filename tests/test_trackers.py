"""TensorBoard's files, read back; and what Weights & Biases is told, by a stand-in for its package."""

import sys
import types

import pytest

from jaxrlhf.trackers import PACKAGES, check_installed, open_trackers
from tests.event_files import points


def test_tensorboard_has_the_curves(tmp_path):
    (tracker,) = open_trackers(["tensorboard"], tmp_path, -1, {})
    tracker.write(0, {"eval/loss": 4.0})
    tracker.write(10, {"loss": 2.5, "num_tokens": 7})
    assert points(tmp_path / "tensorboard") == [("eval/loss", 0, 4.0), ("loss", 10, 2.5), ("num_tokens", 10, 7.0)]
    tracker.close(failed=False)


def test_tensorboard_draws_the_steps_after_a_checkpoint_once(tmp_path):
    for resumed, steps in ((-1, (1, 2, 3)), (2, (3, 4))):
        (tracker,) = open_trackers(["tensorboard"], tmp_path, resumed, {})
        for step in steps:
            tracker.write(step, {"loss": 10.0 * resumed})
        tracker.close(failed=True)
    assert len(list((tmp_path / "tensorboard").iterdir())) == 2
    assert points(tmp_path / "tensorboard") == [("loss", 1, -10), ("loss", 2, -10), ("loss", 3, 20), ("loss", 4, 20)]


class Service:
    """Stands in for the package `wandb`: remembers what it was told."""

    def __init__(self, starting_step=0):
        self.starting_step = starting_step
        self.id = "abc"
        self.told = []

    def init(self, **settings):
        self.told.append(settings)
        return self

    def log(self, values, step):
        self.told.append((step, values))

    def finish(self, exit_code):
        self.told.append(exit_code)


def wandb_run(monkeypatch, folder, step, service, *, failed=False):
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=service.init))
    (tracker,) = open_trackers(["wandb"], folder, step, {"seed": 3})
    for number in (11, 12):
        tracker.write(number, {"loss": 0.5})
    tracker.close(failed=failed)
    return service.told


def test_wandb_is_told_the_project_the_name_and_the_config(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    settings, *rest = wandb_run(monkeypatch, tmp_path, -1, Service())
    assert settings == {
        "project": "jaxrlhf",
        "name": tmp_path.name,
        "id": None,
        "resume": None,
        "dir": str(tmp_path),
        "config": {"seed": 3},
    }
    assert rest == [(11, {"loss": 0.5}), (12, {"loss": 0.5}), 0]


def test_wandb_resumes_under_the_same_id_and_is_sent_no_step_twice(tmp_path, monkeypatch):
    wandb_run(monkeypatch, tmp_path, -1, Service())
    settings, *rest = wandb_run(monkeypatch, tmp_path, 10, Service(starting_step=12), failed=True)
    assert (settings["id"], settings["resume"]) == ("abc", "allow")
    assert rest == [(12, {"loss": 0.5}), 1]


def test_wandb_knows_a_run_that_begins_anew_by_another_id(tmp_path, monkeypatch):
    for _ in range(2):
        settings, *_ = wandb_run(monkeypatch, tmp_path, -1, Service())
        assert settings["id"] is None


def test_a_missing_package_is_named_with_the_extra_that_has_it(monkeypatch):
    check_installed(["tensorboard"])
    monkeypatch.setitem(PACKAGES, "tensorboard", "no_such_package")
    with pytest.raises(ValueError, match=r"needs the package no_such_package; pip install 'jaxrlhf\[tensorboard\]'"):
        check_installed(["tensorboard"])
