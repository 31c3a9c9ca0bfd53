"""The folder of a run: what is in it, and what a second run in it may be."""

import dataclasses

import jax
import pytest
import yaml

from jaxrlhf.trainers import dpo, sft
from jaxrlhf.trainers.config import OptimConfig
from tests.trainers.small import (
    assert_same_params,
    config,
    demonstrations,
    metrics,
    pairs,
    start,
    train,
)


def test_folder_holds_everything(tmp_path):
    train("ppo", tmp_path / "run")
    found = {path.name for path in (tmp_path / "run").iterdir()}
    assert found == {"config.yaml", "metrics.jsonl", "samples.jsonl", "checkpoints", "export"}
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
    train("sft", tmp_path / "run", log_every=2, keep=5)
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["keep"] == 5


def test_batch_that_does_not_divide_is_named_before_anything_compiles(tmp_path):
    with pytest.raises(ValueError, match=r"batch_size=12 does not divide over 8 devices.*use a multiple of 8"):
        train("sft", tmp_path / "run", batch_size=12)
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
    with pytest.raises(ValueError, match="was trained against another reference"):
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


def test_the_folder_of_another_method_is_refused_in_one_sentence(tmp_path):
    train("sft", tmp_path / "run", steps=1)
    with pytest.raises(ValueError, match="run holds a run of another method; choose another `out`"):
        train("ppo", tmp_path / "run", steps=1)


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
