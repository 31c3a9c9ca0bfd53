"""Who scores answers, and what is refused before and while they do."""

import dataclasses

import jax.numpy as jnp
import pytest

from jaxrlhf.trainers import grpo, ppo
from jaxrlhf.trainers.start import scalar_start
from tests.trainers.small import (
    config,
    mentions,
    metrics,
    prompts,
    samples,
    start,
    train,
)


def test_ppo_without_a_reward_is_refused(tmp_path):
    with pytest.raises(ValueError, match="nothing gives a reward"):
        ppo.run(config("ppo", tmp_path / "run"), model=start(), dataset=prompts())


def test_a_language_model_named_as_reward_model_is_refused(tmp_path):
    """Its head would be new, and its scores all the same."""
    train("sft", tmp_path / "sft", steps=1)
    settings = config("ppo", tmp_path / "run", reward_model=str(tmp_path / "sft"))
    with pytest.raises(ValueError, match="reward_model=.* is a language model, and a reward model is needed here"):
        ppo.run(settings, model=start(), dataset=prompts())


def test_a_reward_model_that_gives_nan_stops_the_run(tmp_path):
    scorer = scalar_start(start())
    broken = {**scorer.params, "score": {"kernel": jnp.full((1, 16), jnp.nan)}}
    settings = config("ppo", tmp_path / "run")
    with pytest.raises(ValueError, match="reward_model gave NaN or infinity for 16 of 16 answers"):
        ppo.run(settings, model=start(), reward_model=dataclasses.replace(scorer, params=broken), dataset=prompts())


def test_rewards_may_have_no_opinion(tmp_path):
    def sometimes(prompts, completions, **columns):
        return [None if number % 2 else 1.0 for number in range(len(completions))]

    ppo.run(config("ppo", tmp_path / "run", steps=1), model=start(), dataset=prompts(), rewards=[sometimes])
    shown = [row["scores"]["sometimes"] for row in samples(tmp_path / "run") if row["pick"] == "first"]
    assert shown == [1.0, None] * 4
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


def test_weights_must_match_the_rewards(tmp_path):
    settings = config("grpo", tmp_path / "run", reward_weights=(1.0, 2.0))
    with pytest.raises(ValueError, match="reward_weights has 2 numbers for 1 rewards: mentions"):
        grpo.run(settings, model=start(), dataset=prompts(), rewards=[mentions])


def test_a_reward_model_with_too_few_positions_is_refused(tmp_path):
    scorer = scalar_start(start())
    short = dataclasses.replace(scorer, config=dataclasses.replace(scorer.config, max_positions=8))
    with pytest.raises(ValueError, match="the model 8 positions; use a reward model"):
        ppo.run(config("ppo", tmp_path / "run"), model=start(), reward_model=short, dataset=prompts())
