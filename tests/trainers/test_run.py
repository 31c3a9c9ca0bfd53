import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml

from jaxrlhf.data.config import DataConfig
from jaxrlhf.sharding.mesh import make_mesh
from jaxrlhf.trainers import dpo, grpo, ppo, sft
from jaxrlhf.trainers.config import OptimConfig
from jaxrlhf.trainers.rollout_config import GRPOOptions, RolloutConfig
from jaxrlhf.trainers.start import load_start, scalar_start
from tests.trainers.small import (
    assert_same_params,
    config,
    demonstrations,
    mentions,
    metrics,
    pairs,
    prompts,
    samples,
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


def test_evaluation_without_data_is_refused(tmp_path):
    with pytest.raises(ValueError, match="eval_every: no effect without eval_dataset"):
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
    with pytest.raises(ValueError, match="model is a reward model, and a language model is needed here"):
        sft.run(config("sft", tmp_path / "run"), model=scorer, dataset=demonstrations())
    with pytest.raises(ValueError, match="reward_model is a language model, and a reward model is needed here"):
        ppo.run(config("ppo", tmp_path / "run"), model=start(), reward_model=start(), dataset=prompts())


def test_a_reward_model_in_memory_keeps_its_head(tmp_path):
    first = train("reward", tmp_path / "first")
    train("reward", tmp_path / "next", model=first.model, steps=1)
    before = [line["eval/loss"] for line in metrics(tmp_path / "first") if "eval/loss" in line][-1]
    assert metrics(tmp_path / "next")[0]["eval/loss"] == pytest.approx(before, rel=1e-5)


def test_a_language_model_named_as_reward_model_is_refused(tmp_path):
    """Its head would be new, and its scores all the same."""
    train("sft", tmp_path / "sft", steps=1)
    settings = config("ppo", tmp_path / "run", reward_model=str(tmp_path / "sft"))
    with pytest.raises(ValueError, match="reward_model=.* is a language model, and a reward model is needed here"):
        ppo.run(settings, model=start(), dataset=prompts())


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


def test_rows_longer_than_the_model_has_positions_are_refused(tmp_path):
    long = [{"text": "the room was clean . " * 20}]
    with pytest.raises(ValueError, match="the longest sequence has 102 tokens, and the model 64 positions; lower data"):
        sft.run(config("sft", tmp_path / "run", data=DataConfig(max_length=128)), model=start(), dataset=long * 8)
    rollout = RolloutConfig(max_new_tokens=60, answers=2)
    with pytest.raises(ValueError, match="the model 64 positions; lower rollout.max_new_tokens or data.max_prompt"):
        train("ppo", tmp_path / "ppo", rollout=rollout)


def test_a_reward_model_that_gives_nan_stops_the_run(tmp_path):
    scorer = scalar_start(start())
    broken = {**scorer.params, "score": {"kernel": jnp.full((1, 16), jnp.nan)}}
    settings = config("ppo", tmp_path / "run")
    with pytest.raises(ValueError, match="reward_model gave NaN or infinity for 16 of 16 answers"):
        ppo.run(settings, model=start(), reward_model=dataclasses.replace(scorer, params=broken), dataset=prompts())


def test_answers_that_are_all_cut_off_are_warned_of(tmp_path, caplog):
    with caplog.at_level("WARNING"):
        train("ppo", tmp_path / "run", steps=1, rollout=RolloutConfig(max_new_tokens=1, answers=2))
    assert "of the answers were cut off at rollout.max_new_tokens=1" in caplog.text


def test_models_in_memory_stay_usable(tmp_path):
    """A run donates its own copies."""
    model, scorer = start(), scalar_start(start())
    ppo.run(config("ppo", tmp_path / "run", steps=1), model=model, reward_model=scorer, dataset=prompts())
    for leaf in jax.tree.leaves((model.params, scorer.params)):
        assert np.isfinite(leaf).all()


def test_bad_rows_that_are_skipped_are_kept_in_the_folder(tmp_path):
    rows = [*demonstrations(40), {"prompt": "the room", "completion": 7}]
    data = DataConfig(max_length=48, bad_rows="skip")
    sft.run(config("sft", tmp_path / "run", steps=1, data=data), model=start(), dataset=rows)
    (line,) = (tmp_path / "run" / "rejected_training_rows.jsonl").read_text().splitlines()
    assert json.loads(line)["row"] == rows[-1]


def test_the_chat_template_of_the_data_is_exported(tmp_path):
    conversation = [{"role": "user", "content": "the room ?"}, {"role": "assistant", "content": "it was clean ."}]
    data = DataConfig(max_length=64, chat_template="hh")
    settings = config("sft", tmp_path / "sft", steps=1, data=data)
    sft.run(settings, model=start(), dataset=[{"messages": conversation}] * 8)
    exported = load_start(str(tmp_path / "sft"), make_mesh())
    assert "Human: " in exported.tokenizer.apply_chat_template(conversation, tokenize=False)
    asked = config("ppo", tmp_path / "ppo", steps=1, model=str(tmp_path / "sft"))
    ppo.run(asked, dataset=[{"prompt": conversation[:1]}] * 8, rewards=[always_one])
    assert "Human: " in samples(tmp_path / "ppo")[0]["prompt"]


def always_one(prompts, completions, **columns):
    return [1.0] * len(completions)


def test_rewards_may_have_no_opinion(tmp_path):
    def sometimes(prompts, completions, **columns):
        return [None if number % 2 else 1.0 for number in range(len(completions))]

    ppo.run(config("ppo", tmp_path / "run", steps=1), model=start(), dataset=prompts(), rewards=[sometimes])
    assert [row["scores"]["sometimes"] for row in samples(tmp_path / "run")] == [1.0, None] * 4
    assert metrics(tmp_path / "run")[0]["objective/unscored"] == 8


def test_a_reward_that_takes_no_columns_is_named_before_anything_is_sampled(tmp_path):
    def narrow(prompts, completions):
        return [1.0] * len(completions)

    with pytest.raises(
        ValueError, match=r"reward narrow cannot be called with the columns of the data, wanted: .*\*\*columns"
    ):
        ppo.run(config("ppo", tmp_path / "run"), model=start(), dataset=prompts(), rewards=[narrow])


def test_a_reward_that_fails_says_which_it_was(tmp_path):
    def broken(prompts, completions, **columns):
        return columns["nope"]

    with pytest.raises(KeyError) as caught:
        ppo.run(config("ppo", tmp_path / "run"), model=start(), dataset=prompts(), rewards=[broken])
    assert caught.value.__notes__ == ["in reward broken, on 16 completions with the columns wanted"]


def test_the_folder_of_another_method_is_refused_in_one_sentence(tmp_path):
    train("sft", tmp_path / "run", steps=1)
    with pytest.raises(ValueError, match="run holds a run of another method; choose another `out`"):
        train("ppo", tmp_path / "run", steps=1)


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "run").touch()
    with pytest.raises(ValueError, match="out=.*run is a file; name a folder"):
        train("sft", tmp_path / "run", steps=1)


def test_data_that_are_named_and_given_are_refused(tmp_path):
    settings = config("sft", tmp_path / "run", dataset="other.jsonl")
    with pytest.raises(ValueError, match="rows in memory and dataset=other.jsonl"):
        sft.run(settings, model=start(), dataset=demonstrations())


def test_names_in_place_of_models_and_single_rewards_are_refused(tmp_path):
    with pytest.raises(TypeError, match="model is 'runs/sft'; in memory it is a trainers.start.Start"):
        sft.run(config("sft", tmp_path / "run"), model="runs/sft", dataset=demonstrations())
    with pytest.raises(TypeError, match=r"rewards=\[always_one\]"):
        ppo.run(config("ppo", tmp_path / "run"), model=start(), dataset=prompts(), rewards=always_one)


def test_the_last_metrics_are_returned(tmp_path):
    done = train("sft", tmp_path / "run", steps=2)
    lines = metrics(tmp_path / "run")
    assert done.metrics["eval/loss"] == lines[-1]["eval/loss"]
    assert done.metrics["loss"] == lines[-2]["loss"]
    assert "params" not in repr(done)


def test_grpo_raises_a_weighted_reward(tmp_path):
    """A reward that any policy can raise, with a weight, and one that weighs nothing."""

    def brief(prompts, completions, **columns):
        return [-float(len(text.split())) for text in completions]

    settings = config(
        "grpo",
        tmp_path / "run",
        steps=12,
        optim=OptimConfig(learning_rate=3e-2, schedule="constant"),
        grpo=GRPOOptions(epochs=2, mini_batches=2),
        rollout=RolloutConfig(max_new_tokens=6, answers=4),
        reward_weights=(2.0, 0.0),
    )
    grpo.run(settings, model=start(), dataset=prompts(), rewards=[brief, mentions])
    rewards = [line["reward"] for line in metrics(tmp_path / "run")]
    assert rewards[-1] > rewards[0] + 1.0
    first = metrics(tmp_path / "run")[0]
    assert first["reward"] == pytest.approx(2 * first["rewards/brief/mean"], rel=1e-5)


def test_weights_must_match_the_rewards(tmp_path):
    settings = config("grpo", tmp_path / "run", reward_weights=(1.0, 2.0))
    with pytest.raises(ValueError, match="reward_weights has 2 numbers for 1 rewards: mentions"):
        grpo.run(settings, model=start(), dataset=prompts(), rewards=[mentions])


def test_a_reference_that_grpo_would_not_read_is_refused(tmp_path):
    settings = config("grpo", tmp_path / "run", grpo=GRPOOptions())
    with pytest.raises(ValueError, match="a reference has no effect at grpo.kl_coef=0"):
        grpo.run(settings, model=start(), reference=start(), dataset=prompts(), rewards=[mentions])


def test_held_out_answers_do_not_depend_on_the_size_of_their_batches(tmp_path):
    found = [
        train("grpo", tmp_path / str(size), steps=1, eval_batch_size=size).metrics["eval/completions/mean_length"]
        for size in (8, 16)
    ]
    assert found[0] == found[1]


def test_a_reward_model_with_too_few_positions_is_refused(tmp_path):
    scorer = scalar_start(start())
    short = dataclasses.replace(scorer, config=dataclasses.replace(scorer.config, max_positions=8))
    with pytest.raises(ValueError, match="the model 8 positions; use a reward model"):
        ppo.run(config("ppo", tmp_path / "run"), model=start(), reward_model=short, dataset=prompts())


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


def test_models_on_one_device_are_spread_over_all(tmp_path):
    one = jax.devices()[0]
    model = dataclasses.replace(start(), params=jax.device_put(start().params, one))
    done = sft.run(config("sft", tmp_path / "run", steps=1), model=model, dataset=demonstrations())
    assert len(jax.tree.leaves(done.model.params)[0].sharding.device_set) == 8


def test_a_batch_that_teaches_nothing_is_warned_of(tmp_path, caplog):
    with caplog.at_level("WARNING"):
        grpo.run(config("grpo", tmp_path / "a", steps=1), model=start(), dataset=prompts(), rewards=[always_one])
        assert "in each group all rewards are equal" in caplog.text
        never = config("grpo", tmp_path / "b", steps=1)
        grpo.run(never, model=start(), dataset=prompts(), rewards=[lambda prompts, completions, **_: [None] * 16])
    assert "no reward has an opinion on any answer" in caplog.text
