from typing import Any, get_args

import pytest

from jaxrlhf.data.config import DatasetConfig
from jaxrlhf.optim import SCHEDULES
from jaxrlhf.trainers.config import DPOConfig, KTOConfig, OptimConfig, RewardConfig, Schedule, SFTConfig
from jaxrlhf.trainers.grpo_config import GRPOConfig, GRPOOptions
from jaxrlhf.trainers.ppo_config import PPOConfig, PPOOptions, PTXConfig
from jaxrlhf.trainers.rollout_config import RolloutConfig


def sft(**fields: Any) -> SFTConfig:
    return SFTConfig(out="runs/x", **fields)


def reward(**fields: Any) -> RewardConfig:
    return RewardConfig(out="runs/x", **fields)


def dpo(**fields: Any) -> DPOConfig:
    return DPOConfig(out="runs/x", **fields)


def kto(**fields: Any) -> KTOConfig:
    return KTOConfig(out="runs/x", **fields)


def ppo(**fields: Any) -> PPOConfig:
    return PPOConfig(out="runs/x", **fields)


@pytest.mark.parametrize(
    ("config", "fields", "message"),
    [
        (OptimConfig, {"schedule": "cosin"}, "schedule='cosin' is unknown; .*did you mean 'cosine'"),
        (OptimConfig, {"learning_rate": 0.0, "b2": 1.0}, r"learning_rate=0.0 must be positive; b2=1.0 must lie in"),
        (OptimConfig, {"warmup_steps": -1}, "warmup_steps=-1 must not be negative"),
        (PPOOptions, {"critic_learning_rate": 0.0}, "critic_learning_rate=0.0 must be positive"),
        (PPOOptions, {"gamma": 1.5, "mini_batches": 0}, r"mini_batches=0 must be positive; gamma=1.5 must lie in"),
        (PPOOptions, {"kl_target": 0.0, "score_clip": 0.0}, "kl_target=0.0 must be positive; score_clip=0.0 must be"),
        (PPOOptions, {"entropy_coef": -1.0}, "entropy_coef=-1.0 must not be negative"),
        (PPOOptions, {"kl_horizon": 10}, "kl_horizon=10 has no effect on a fixed price; set kl_target"),
        (PPOOptions, {"kl_target": 6.0, "kl_coef": 0.0}, "a price of kl_coef=0 cannot adapt"),
        (PPOOptions, {"kl": "exact", "kl_coef": 0.0}, "kl=exact has no effect at kl_coef=0"),
        (PPOOptions, {"early_stop_kl": 0.1, "epochs": 1}, "early_stop_kl=0.1 has no effect on a single update"),
        (PPOOptions, {"normalize_scores": "std"}, "normalize_scores='std' is unknown"),
        (PTXConfig, {"coef": 0.0, "batch_size": 0}, "coef=0.0 must be positive; batch_size=0 must be positive"),
        (
            ppo,
            {"ppo": PPOOptions(kl_target=6.0, kl_horizon=8)},
            "ppo.kl_horizon=8 is shorter than a step",
        ),
        (ppo, {"ptx": PTXConfig(batch_size=6), "micro_batches": 4}, "micro_batches=4 does not divide ptx.batch_size=6"),
        (RolloutConfig, {"temperature": 0.0, "answers": 0}, "temperature=0.0 .*; answers=0 must be positive"),
        (sft, {"batch_size": 0, "keep": 0}, "batch_size=0 must be positive; keep=0 must be positive"),
        (sft, {"micro_batches": 0}, "micro_batches=0 must be positive"),
        (sft, {"micro_batches": 3}, "micro_batches=3 does not divide batch_size=32"),
        (sft, {"eval_batch_size": 0}, "eval_batch_size=0 must be positive"),
        (sft, {"steps": 0}, "steps=0 must be positive"),
        (sft, {"seed": -1}, r"seed=-1 must lie in 0 \.\.\. 2\*\*32 - 1"),
        (sft, {"seed": 2**32}, "seed=4294967296 must lie in"),
        (sft, {"best_mode": "min"}, "best_mode=min has no effect without best_metric; name one"),
        (sft, {"best_metric": "eval/loss", "best_mode": "least"}, "best_mode='least' is unknown"),
        (reward, {"center_coef": -0.1}, "center_coef=-0.1 must not be negative"),
        (dpo, {"beta": 0.0}, "beta=0.0 must be positive"),
        (dpo, {"best_mode": "max"}, "best_mode=max has no effect"),
        (kto, {"beta": 0.0, "desirable_weight": 0.0}, "beta=0.0 must be positive; desirable_weight=0.0 must be"),
        (kto, {"undesirable_weight": -1.0}, "undesirable_weight=-1.0 must be positive"),
        (kto, {"batch_size": 1}, "batch_size=1 leaves no other row to estimate the KL with; use 2 or more"),
        (kto, {"eval_batch_size": 1}, "eval_batch_size=1 leaves no other row"),
        (ppo, {"samples_every": -1}, "samples_every=-1 must not be negative"),
        (ppo, {"micro_batches": 5}, "micro_batches=5 does not divide the 32 answers of a step"),
        (ppo, {"rollout": RolloutConfig(slots=33)}, "rollout.slots=33 has no effect on 32 answers"),
        (RolloutConfig, {"slots": 0, "chunk": 0}, "slots=0 must be positive; chunk=0 must be positive"),
        (RolloutConfig, {"draw": "gumble"}, "draw='gumble' is unknown.*did you mean 'gumbel'"),
    ],
)
def test_what_cannot_be_is_refused_with_its_key(config, fields, message):
    with pytest.raises(ValueError, match=message):
        config(**fields)


def test_data_are_named_once():
    with pytest.raises(ValueError, match="dataset and datasets are both given"):
        sft(dataset="a.jsonl", datasets=(DatasetConfig(path="b.jsonl"),))


def test_a_warmup_may_be_longer_than_the_run():
    sft(steps=10, optim=OptimConfig(warmup_steps=100))


@pytest.mark.parametrize(("mode", "best"), [(None, "min"), ("min", "min"), ("max", "max")])
def test_the_smallest_value_is_the_best_unless_the_largest_is(mode, best):
    assert sft(best_metric="eval/loss", best_mode=mode).best_is == best


def test_an_evaluation_of_kto_has_two_rows_at_least():
    assert kto(batch_size=8, micro_batches=8).eval_rows == 2
    assert kto(batch_size=8, micro_batches=2).eval_rows == 4
    assert kto(batch_size=8, eval_batch_size=3).eval_rows == 3


def test_every_schedule_has_a_shape():
    assert set(get_args(Schedule)) == set(SCHEDULES)


def evaluating(eval_batch_size: int | None, *, answers: int, mini_batches: int = 4) -> PPOConfig:
    return ppo(
        batch_size=16,
        eval_batch_size=eval_batch_size,
        rollout=RolloutConfig(answers=answers),
        ppo=PPOOptions(mini_batches=mini_batches),
    )


@pytest.mark.parametrize(
    ("size", "answers"), [(None, 1), (1, 1), (3, 1), (4, 1), (8, 1), (20, 1), (1, 3), (4, 3), (8, 3)]
)
def test_evaluations_of_whole_parts_or_less_than_one_are_fine(size, answers):
    evaluating(size, answers=answers)


@pytest.mark.parametrize(
    ("size", "answers", "mini_batches", "found", "part", "better"),
    [
        (10, 1, 4, 10, 4, 8),
        (5, 1, 4, 5, 4, 4),
        (5, 3, 4, 15, 12, 4),
        (9, 6, 8, 54, 12, 8),
        (3, 3, 12, 9, 4, 4),  # no fewer than 4 prompts have answers that fill parts of 4
    ],
)
def test_other_evaluations_are_refused_with_a_number_to_use(size, answers, mini_batches, found, part, better):
    message = (
        f"eval_batch_size={size} x rollout.answers={answers} makes {found} answers, which are judged {part} at a time"
    )
    with pytest.raises(ValueError, match=f"{message}.*; use eval_batch_size={better}$"):
        evaluating(size, answers=answers, mini_batches=mini_batches)
    evaluating(better, answers=answers, mini_batches=mini_batches)


@pytest.mark.parametrize(
    "options, problem",
    [
        ({"kl": "k2"}, "kl=k2 has no effect at kl_coef=0"),
        ({"clip_low": 1.5}, r"clip_low=1.5 must lie in \(0, 1\]"),
        ({"reduction": "mean"}, "reduction='mean' is unknown"),
        ({"kl_coef": -1.0}, "kl_coef=-1.0 must not be negative"),
    ],
)
def test_grpo_options_are_checked(options, problem):
    with pytest.raises(ValueError, match=problem):
        GRPOOptions(**options)


def test_grpo_needs_groups_and_effects():
    with pytest.raises(ValueError, match="rollout.answers=1: an answer alone in its group teaches nothing"):
        GRPOConfig(out="x", rollout=RolloutConfig(answers=1))
    with pytest.raises(ValueError, match="reference=x has no effect at grpo.kl_coef=0"):
        GRPOConfig(out="x", reference="x")
    assert GRPOConfig(out="x").rollout.answers == 8
    with pytest.raises(ValueError, match=r"share_prompts=true: mini_batches=3 x micro_batches=2 must divide the 9 pr"):
        options = GRPOOptions(mini_batches=3, share_prompts=True)
        GRPOConfig(out="x", grpo=options, batch_size=9, micro_batches=2)


@pytest.mark.parametrize(
    ("options", "micro_batches", "expected"),
    [
        ({}, 2, True),
        ({"mini_batches": 2}, 1, False),
        ({"reduction": "bnpo"}, 2, False),
        ({"reduction": "bnpo"}, 1, True),
    ],
)
def test_grpo_knows_when_it_is_all_one_how_answers_are_cut(options, micro_batches, expected):
    made = GRPOConfig(out="x", grpo=GRPOOptions(**options), micro_batches=micro_batches, batch_size=8)
    assert made.cuts_do_not_matter is expected
