"""PPO's options, from the config to what a run writes down."""

import dataclasses

import pytest

from jaxrlhf.steps import shaping
from jaxrlhf.trainers import ppo, ppo_config
from tests.trainers.small import config, demonstrations, mentions, metrics, prompts, start, train


def test_every_option_leaves_its_mark(tmp_path):
    train("ppo_options", tmp_path / "run")
    steps = [line for line in metrics(tmp_path / "run") if "num_tokens" in line]
    assert [line["train_policy"] for line in steps] == [0.0, 1.0, 1.0, 1.0]
    assert [line["policy/rest_ratio"] for line in steps][0] == 1.0
    assert 0.0 < steps[-1]["policy/rest_ratio"] < 1.0  # 1e-4 nats are soon passed
    prices = [line["objective/kl_coef"] for line in steps]
    assert prices[0] == prices[1] == pytest.approx(0.05) and prices[1] != prices[2] != prices[3]
    assert steps[-1]["objective/running_score_std"] > 0
    assert steps[0]["loss/ptx_avg"] is None  # the policy rested, and so did its texts
    assert 0.0 < steps[-1]["loss/ptx_avg"] < 10.0
    held_out = [line for line in metrics(tmp_path / "run") if "eval/objective/scores" in line]
    assert not any("kl_coef" in name or "running" in name for line in held_out for name in line)


def test_pretraining_texts_are_part_of_the_run(tmp_path):
    train("ppo_options", tmp_path / "run", steps=2)
    settings = config("ppo_options", tmp_path / "run")
    given = {"model": start(), "dataset": prompts(), "eval_dataset": prompts(5), "rewards": [mentions]}
    with pytest.raises(ValueError, match="was trained on other data"):
        ppo.run(settings, ptx_dataset=demonstrations(seed=5), **given)


def test_options_of_texts_that_are_not_there_are_refused(tmp_path):
    settings = config("ppo_options", tmp_path / "run")
    given = {"model": start(), "dataset": prompts(), "rewards": [mentions]}
    with pytest.raises(ValueError, match="ptx: no effect without ptx.dataset"):
        ppo.run(settings, **given)
    named = dataclasses.replace(settings, ptx=dataclasses.replace(settings.ptx, dataset="texts.jsonl"))
    with pytest.raises(ValueError, match="rows in memory and ptx.dataset=texts.jsonl in the config"):
        ppo.run(named, ptx_dataset=demonstrations(), **given)


def test_a_warmup_that_leaves_the_policy_no_step_is_refused(tmp_path):
    settings = config("ppo", tmp_path / "run")
    settings = dataclasses.replace(settings, ppo=dataclasses.replace(settings.ppo, critic_warmup_steps=4))
    with pytest.raises(ValueError, match="critic_warmup_steps=4 leaves the policy none of the 4 steps"):
        ppo.run(settings, model=start(), dataset=prompts(), rewards=[mentions])


def test_the_config_offers_what_the_step_can_do():
    assert ppo_config.Normalize == shaping.Normalize
