import dataclasses

import pytest
import yaml

from jaxrlhf.trainers import dpo, ppo, sft
from jaxrlhf.trainers.config import OptimConfig
from jaxrlhf.trainers.start import scalar_start
from tests.trainers.small import assert_same_params, config, demonstrations, metrics, pairs, prompts, start, train


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
    train("sft", tmp_path / "run", log_every=2, keep=5)


def test_batch_that_does_not_divide_is_named_before_anything_compiles(tmp_path):
    with pytest.raises(ValueError, match=r"batch_size=12 does not divide over 8 devices.*use a multiple of 8"):
        train("sft", tmp_path / "run", batch_size=12)
    assert not (tmp_path / "run").exists()


def test_micro_batches_that_do_not_divide_are_named(tmp_path):
    with pytest.raises(ValueError, match="micro_batches=3 does not divide batch_size=8"):
        train("sft", tmp_path / "run", micro_batches=3)


def test_evaluation_without_data_is_refused(tmp_path):
    with pytest.raises(ValueError, match="eval_every and best_metric have no effect without eval_dataset"):
        sft.run(config("sft", tmp_path / "run", eval_every=2), model=start(), dataset=demonstrations())


def test_no_data_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no data to train on; set dataset=PATH"):
        sft.run(config("sft", tmp_path / "run"), model=start())


def test_no_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no model is named"):
        sft.run(config("sft", tmp_path / "run"), dataset=demonstrations())


def test_ppo_without_a_reward_is_refused(tmp_path):
    with pytest.raises(ValueError, match="nothing gives a reward"):
        ppo.run(config("ppo", tmp_path / "run"), model=start(), dataset=prompts())


def test_reference_of_another_shape_is_refused(tmp_path):
    other = start()
    other = dataclasses.replace(other, config=dataclasses.replace(other.config, rope_theta=5.0))
    with pytest.raises(ValueError, match="the reference is another model than the policy"):
        dpo.run(config("dpo", tmp_path / "run"), model=start(), reference=other, dataset=pairs())


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


def test_stage_starts_from_the_folder_of_another(tmp_path):
    first = train("sft", tmp_path / "sft")
    settings = config("dpo", tmp_path / "dpo", model=str(tmp_path / "sft"), steps=1)
    dpo.run(settings, dataset=pairs(), eval_dataset=pairs(5))
    held_out, step, _ = metrics(tmp_path / "dpo")
    assert held_out["eval/loss"] == pytest.approx(0.693147, abs=1e-6)  # policy and reference are equal
    assert step["rewards/margins"] == pytest.approx(0.0, abs=1e-5)
    assert first.folder == tmp_path / "sft"


def test_unfinished_run_is_no_model(tmp_path):
    (tmp_path / "sft").mkdir()
    (tmp_path / "sft" / "metrics.jsonl").touch()
    with pytest.raises(ValueError, match="is a run that has no export yet"):
        sft.run(config("sft", tmp_path / "next", model=str(tmp_path / "sft")), dataset=demonstrations())


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


def test_a_model_with_the_wrong_head_is_refused(tmp_path):
    scorer = scalar_start(start())
    with pytest.raises(ValueError, match="model needs a model with an unembedding, and this one has a score head"):
        sft.run(config("sft", tmp_path / "run"), model=scorer, dataset=demonstrations())
    with pytest.raises(ValueError, match="reward_model needs a model with a score head"):
        ppo.run(config("ppo", tmp_path / "run"), model=start(), reward_model=start(), dataset=prompts())


def test_a_reward_model_in_memory_keeps_its_head(tmp_path):
    first = train("reward", tmp_path / "first")
    train("reward", tmp_path / "next", model=first.model, steps=1)
    before = [line["eval/loss"] for line in metrics(tmp_path / "first") if "eval/loss" in line][-1]
    assert metrics(tmp_path / "next")[0]["eval/loss"] == pytest.approx(before, rel=1e-5)
