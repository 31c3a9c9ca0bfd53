"""The loop of the methods that learn from their own answers."""

import chex
import jax
import numpy as np
import pytest

from jaxrlhf.models.config import ComputeConfig
from jaxrlhf.sharding.config import MeshConfig
from jaxrlhf.trainers import grpo, ppo
from jaxrlhf.trainers.config import OptimConfig
from jaxrlhf.trainers.grpo_config import GRPOOptions
from jaxrlhf.trainers.rollout_config import RolloutConfig
from jaxrlhf.trainers.start import scalar_start
from tests.trainers.small import (
    always_one,
    config,
    histograms,
    mentions,
    metrics,
    prompts,
    samples,
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


def test_answers_that_share_the_row_of_their_prompt_teach_grpo_the_same(tmp_path):
    def run(shared: bool):
        options = GRPOOptions(kl_coef=0.1, share_prompts=shared)
        found = train("grpo", tmp_path / str(shared), steps=2, grpo=options)
        return jax.device_get(found.model.params), metrics(tmp_path / str(shared))

    (apart, told), (together, same) = run(False), run(True)
    chex.assert_trees_all_close(together, apart, atol=2e-4)
    told, same = ([line["objective/kl"] for line in lines if "objective/kl" in line] for lines in (told, same))
    assert len(told) == 2 and same == pytest.approx(told, abs=1e-5)


def test_grpo_shares_prompts_where_that_is_less_to_compute(tmp_path, caplog):
    said = "the 2 answers to a prompt share its row"
    with caplog.at_level("INFO", logger="jaxrlhf"):
        long = RolloutConfig(max_new_tokens=40, answers=2)
        train("grpo", tmp_path / "long", steps=1, grpo=GRPOOptions(), rollout=long)
        train("grpo", tmp_path / "parts", steps=1, batch_size=16, grpo=GRPOOptions(mini_batches=2))
        assert said not in caplog.messages
        train("grpo", tmp_path / "short", steps=1, grpo=GRPOOptions())
        assert said in caplog.messages


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"batch_size": 8, "micro_batches": 2}, r"prompts of a micro-batch \(grpo.share_prompts\)=4 "),
        ({"compute": ComputeConfig(attention="splash")}, "compute.attention='splash' needs a TPU"),
    ],
)
def test_prompts_that_cannot_be_shared_are_refused_before_anything_is_loaded(tmp_path, changes, problem):
    settings = config("grpo", tmp_path / "run", model="nothing", grpo=GRPOOptions(share_prompts=True), **changes)
    with pytest.raises(ValueError, match=problem):
        grpo.run(settings, dataset=prompts(), rewards=[mentions])


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


def sometimes(prompts, completions, **columns):
    """No opinion on every other answer."""
    return [None if number % 2 else float(number) for number in range(len(completions))]


def test_weighted_totals_of_all_answers_are_counted_and_shown(tmp_path):
    settings = config("grpo", tmp_path / "run", steps=2, log_every=2, save_every=0, reward_weights=(0.5, 0.0))
    grpo.run(settings, model=start(), dataset=prompts(), rewards=[sometimes, always_one])
    (line,) = histograms(tmp_path / "run")
    assert line["step"] == 2  # both steps, of 16 answers each
    assert (line["scores"]["edges"][0], line["scores"]["edges"][-1]) == (0.0, 7.0)
    assert sum(line["scores"]["counts"]) == line["scores"]["unscored"] == 16
    shown = samples(tmp_path / "run")
    assert [(row["pick"], row["score"]) for row in shown if row["step"] == 1] == [
        *(("first", None if number % 2 else number / 2) for number in range(8)),
        ("best", 7.0),
        ("worst", 0.0),
    ]
    assert shown[1]["scores"] == {"sometimes": None, "always_one": 1.0}
    assert shown[2]["scores"] == {"sometimes": 2.0, "always_one": 1.0}


def test_the_same_held_out_prompts_are_shown_at_each_evaluation(tmp_path):
    """Of the first two batches of four."""
    changes = {"batch_size": 4, "eval_batch_size": 4, "mesh": MeshConfig(data=4, tensor=2)}
    settings = config("grpo", tmp_path / "run", steps=2, eval_every=1, samples_every=2, **changes)
    held_out = prompts(11)
    grpo.run(settings, model=start(), dataset=prompts(), eval_dataset=held_out, rewards=[mentions])
    shown = [(row["step"], row["prompt"]) for row in samples(tmp_path / "run") if row["split"] == "eval"]
    assert shown == [(step, row["prompt"]) for step in range(3) for row in held_out[:8]]


def test_no_samples_are_written_at_samples_every_0(tmp_path):
    train("grpo", tmp_path / "run", steps=1, samples_every=0)
    assert not (tmp_path / "run" / "samples.jsonl").exists()
    assert len(histograms(tmp_path / "run")) == 1
