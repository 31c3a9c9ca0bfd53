"""The loop of the methods that learn from their own answers."""

import jax
import numpy as np
import pytest

from jaxrlhf.trainers import grpo, ppo
from jaxrlhf.trainers.config import OptimConfig
from jaxrlhf.trainers.grpo_config import GRPOOptions
from jaxrlhf.trainers.rollout_config import RolloutConfig
from jaxrlhf.trainers.start import scalar_start
from tests.trainers.small import (
    always_one,
    config,
    mentions,
    metrics,
    prompts,
    start,
    train,
)


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


def test_a_batch_that_teaches_nothing_is_warned_of(tmp_path, caplog):
    with caplog.at_level("WARNING"):
        grpo.run(config("grpo", tmp_path / "a", steps=1), model=start(), dataset=prompts(), rewards=[always_one])
        assert "in each group all rewards are equal" in caplog.text
        never = config("grpo", tmp_path / "b", steps=1)
        grpo.run(never, model=start(), dataset=prompts(), rewards=[lambda prompts, completions, **_: [None] * 16])
    assert "no reward has an opinion on any answer" in caplog.text
