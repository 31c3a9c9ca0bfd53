"""The folder of a run: what is in it, and what a second run in it may be."""

import dataclasses

import jax
import pytest
import yaml

from jaxrlhf.models.config import ComputeConfig
from jaxrlhf.trainers import dpo, sft
from jaxrlhf.trainers.config import OptimConfig
from jaxrlhf.trainers.run import Run
from tests.event_files import points
from tests.trainers.small import (
    assert_same_params,
    config,
    demonstrations,
    events,
    metrics,
    pairs,
    start,
    train,
)


def test_folder_holds_everything(tmp_path):
    train("ppo", tmp_path / "run")
    found = {path.name for path in (tmp_path / "run").iterdir()}
    lines = {"metrics.jsonl", "events.jsonl", "histograms.jsonl", "samples.jsonl"}
    assert found == lines | {"config.yaml", "checkpoints", "export"}
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["rollout"]["max_new_tokens"] == 6
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {
        p.name for p in (tmp_path / "run/export").iterdir()
    }


def test_another_configuration_in_the_folder_is_refused(tmp_path):
    train("sft", tmp_path / "run")
    with pytest.raises(ValueError, match=r"holds a run with another configuration \(seed: 0 -> 1\)"):
        train("sft", tmp_path / "run", seed=1)


def test_other_data_in_the_folder_are_refused(tmp_path):
    train("sft", tmp_path / "run")
    settings = config("sft", tmp_path / "run", steps=8)
    with pytest.raises(ValueError, match="was trained on other data"):
        sft.run(settings, model=start(), dataset=demonstrations(seed=5), eval_dataset=demonstrations(5, seed=9))


def test_harmless_keys_may_change(tmp_path):
    train("sft", tmp_path / "run")
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    train("sft", tmp_path / "run", log_every=2, keep=5, trackers=("tensorboard",))
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["keep"] == 5


def test_batch_that_does_not_divide_is_named_before_anything_compiles(tmp_path):
    with pytest.raises(ValueError, match=r"batch_size=12 does not divide over 8 devices.*use a multiple of 8"):
        train("sft", tmp_path / "run", batch_size=12)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("attention", "message"),
    [("cudnn", "needs an NVIDIA GPU; the program is for cpu"), ("splash", "needs a TPU; the program is for cpu")],
)
def test_attention_that_the_devices_cannot_have_is_refused_before_a_model_is_loaded(tmp_path, attention, message):
    settings = config("sft", tmp_path / "run", model="nothing", compute=ComputeConfig(attention=attention))
    with pytest.raises(ValueError, match=f"compute.attention='{attention}' {message}; choose 'auto' or 'xla'"):
        sft.run(settings)
    assert not (tmp_path / "run").exists()


def test_micro_batches_that_do_not_divide_are_named(tmp_path):
    with pytest.raises(ValueError, match="micro_batches=3 does not divide batch_size=8"):
        train("sft", tmp_path / "run", micro_batches=3)


def test_best_step_by_metric_is_exported(tmp_path):
    """The rate is far too high after the first steps, so that an early step is the best."""
    changes = {"best_metric": "eval/loss", "eval_every": 1, "save_every": 0, "keep": 1}
    optim = OptimConfig(learning_rate=0.3, schedule="constant", warmup_steps=4)
    best = train("sft", tmp_path / "best", optim=optim, **changes)
    losses = {line["step"]: line["eval/loss"] for line in metrics(tmp_path / "best") if "eval/loss" in line}
    winner = min((step for step in losses if step > 0), key=lambda step: losses[step])
    assert winner != 4, losses
    checked = sft.run(
        config("sft", tmp_path / "check", steps=1),
        model=best.model,
        dataset=demonstrations(),
        eval_dataset=demonstrations(5, seed=9),
    )
    assert checked.steps == 1
    assert metrics(tmp_path / "check")[0]["eval/loss"] == pytest.approx(losses[winner], rel=1e-6)


def test_a_run_that_failed_before_its_first_step_does_not_hold_the_folder(tmp_path):
    with pytest.raises(ValueError, match="no data to train on"):
        sft.run(config("sft", tmp_path / "run", seed=1), model=start())
    train("sft", tmp_path / "run", steps=1)


def test_the_last_step_may_be_the_best(tmp_path):
    run = train("sft", tmp_path / "run", best_metric="eval/loss", eval_every=1, save_every=0, keep=1)
    losses = {line["step"]: line["eval/loss"] for line in metrics(tmp_path / "run") if "eval/loss" in line}
    assert min(losses, key=lambda step: losses[step]) == 4
    again = train("sft", tmp_path / "again", best_metric=None, eval_every=1, save_every=0)
    assert_same_params(run.model, again.model)


def test_fewer_steps_than_were_taken_are_refused(tmp_path):
    train("sft", tmp_path / "run")
    with pytest.raises(ValueError, match="has taken 4 steps, and this run would have 2"):
        train("sft", tmp_path / "run", steps=2)


def test_another_reference_in_the_folder_is_refused(tmp_path):
    train("dpo", tmp_path / "run", steps=2)
    other = start()
    other = dataclasses.replace(other, params=jax.tree.map(lambda leaf: 1.5 * leaf, other.params))
    with pytest.raises(ValueError, match="was trained against another base, reference"):
        settings = config("dpo", tmp_path / "run", steps=4)
        dpo.run(settings, model=start(), reference=other, dataset=pairs(), eval_dataset=pairs(5))


def test_more_steps_than_were_asked_at_first_go_on(tmp_path):
    train("sft", tmp_path / "run", steps=2, optim=OptimConfig(schedule="constant"))
    longer = train("sft", tmp_path / "run", steps=4, optim=OptimConfig(schedule="constant"))
    whole = train("sft", tmp_path / "whole", steps=4, optim=OptimConfig(schedule="constant"))
    assert_same_params(longer.model, whole.model)


def test_a_misspelt_metric_is_named(tmp_path):
    with pytest.raises(ValueError, match="'eval/los' is no metric of this method; did you mean 'eval/loss'"):
        train("sft", tmp_path / "run", best_metric="eval/los", best_mode="min")


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "run").touch()
    with pytest.raises(ValueError, match="out=.*run is a file; name a folder"):
        train("sft", tmp_path / "run", steps=1)


def test_the_last_metrics_are_returned(tmp_path):
    done = train("sft", tmp_path / "run", steps=2)
    lines = metrics(tmp_path / "run")
    assert done.metrics["eval/loss"] == lines[-1]["eval/loss"]
    assert done.metrics["loss"] == lines[-2]["loss"]
    assert "params" not in repr(done)


def test_a_metric_that_is_no_loss_needs_a_direction(tmp_path):
    with pytest.raises(ValueError, match="best_metric=eval/accuracy is no loss; say whether its min or its max"):
        config("reward", tmp_path / "run", best_metric="eval/accuracy")
    best = train("reward", tmp_path / "run", best_metric="eval/accuracy", best_mode="max", eval_every=1)
    assert best.steps == 4


def test_a_refused_resume_leaves_the_config_alone(tmp_path):
    train("sft", tmp_path / "run", steps=2)
    before = (tmp_path / "run" / "config.yaml").read_text()
    with pytest.raises(ValueError, match="has taken 2 steps"):
        train("sft", tmp_path / "run", steps=1)
    assert (tmp_path / "run" / "config.yaml").read_text() == before


def happened(folder):
    return [(line["event"], line["step"]) for line in events(folder)]


def break_at(step, error):
    """Raises an error before a step is saved."""
    saves_at = Run.saves_at

    def broken(self, now):
        if now == step:
            raise error
        return saves_at(self, now)

    return broken


def test_events_tell_what_was_run_and_how_it_ended(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["/somewhere/bin/jaxrlhf", "sft", "seed=0"])
    monkeypatch.setattr("__main__.__spec__", None)
    train("sft", tmp_path / "run", steps=1)
    first, last = events(tmp_path / "run")
    assert (first["event"], first["step"]) == ("start", 0) and (last["event"], last["step"]) == ("finished", 1)
    assert first["command"] == ["jaxrlhf", "sft", "seed=0"]
    assert first["devices"] == "8 x cpu" and first["processes"] == 1 and first["versions"]["jax"] == jax.__version__
    assert last.keys() == {"event", "step", "time"}


@pytest.mark.parametrize(
    "error, why",
    [
        (ValueError("no\nmore"), "ValueError: no"),
        (AssertionError(), "AssertionError"),
        (KeyboardInterrupt(), "interrupted"),
    ],
)
def test_an_error_is_noted_in_one_line_and_passed_on(tmp_path, monkeypatch, error, why):
    monkeypatch.setattr(Run, "saves_at", break_at(1, error))
    with pytest.raises(type(error)) as raised:
        train("sft", tmp_path / "run")
    assert raised.value is error
    assert events(tmp_path / "run")[-1]["why"] == why


def test_events_of_all_attempts_are_kept(tmp_path, monkeypatch):
    for step in (1, 3):
        with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
            patch.setattr(Run, "saves_at", break_at(step, ZeroDivisionError()))
            train("sft", tmp_path / "run")
    train("sft", tmp_path / "run")
    attempts = [("start", 0), ("stopped", 1), ("start", 0), ("stopped", 3), ("resume", 2), ("finished", 4)]
    assert happened(tmp_path / "run") == attempts


def test_a_run_that_was_refused_leaves_no_event(tmp_path):
    train("sft", tmp_path / "run", steps=2)
    with pytest.raises(ValueError, match="has taken 2 steps"):
        train("sft", tmp_path / "run", steps=1)
    assert happened(tmp_path / "run") == [("start", 0), ("finished", 2)]


def test_a_finished_run_that_is_run_again_says_so(tmp_path):
    """Its export is written anew, which is worth a line."""
    for _ in range(2):
        train("sft", tmp_path / "run", steps=1)
    assert happened(tmp_path / "run") == [("start", 0), ("finished", 1), ("resume", 1), ("finished", 1)]


def test_a_run_is_finished_when_its_checkpoints_are_on_disk(tmp_path, monkeypatch):
    def fail(self, *exception):
        raise OSError("disk full")

    monkeypatch.setattr("jaxrlhf.checkpoint.state.Checkpoints.__exit__", fail)
    with pytest.raises(OSError, match="disk full"):
        train("sft", tmp_path / "run", steps=1)
    assert events(tmp_path / "run")[-1]["why"] == "OSError: disk full"


def test_trackers_have_what_metrics_jsonl_has(tmp_path):
    for steps in (1, 2):
        train("sft", tmp_path / "run", steps=steps, trackers=("tensorboard",), optim=OptimConfig(schedule="constant"))
    written = {(name, line["step"]) for line in metrics(tmp_path / "run") for name in line if name != "step"}
    drawn = [point[:2] for point in points(tmp_path / "run" / "tensorboard") if not point[0].startswith("time/")]
    assert len(drawn) == len(set(drawn)) and set(drawn) == written


def test_processes_other_than_the_first_write_no_lines(tmp_path, monkeypatch):
    monkeypatch.setattr("jaxrlhf.trainers.run.is_main", lambda: False)
    train("ppo", tmp_path / "run", steps=1, trackers=("tensorboard",))
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"checkpoints", "export"}
