"""Our side of GRPO and PPO: the trainers, the models that they start from, and a record of the answers."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from benchmarks.parity import world
from benchmarks.parity.ours import Curve, read_curve
from benchmarks.parity.settings import Sampled
from jaxrlhf.data.config import DataConfig
from jaxrlhf.trainers import grpo, play, ppo, reward, sft
from jaxrlhf.trainers.config import OptimConfig, RewardConfig, SFTConfig
from jaxrlhf.trainers.grpo_config import GRPOConfig, GRPOOptions
from jaxrlhf.trainers.host_rewards import read_answers
from jaxrlhf.trainers.ppo_config import PPOConfig, PPOOptions
from jaxrlhf.trainers.rollout_config import RolloutConfig
from jaxrlhf.types import Samples

Answers = list[list[tuple[str, list[int]]]]
"""For every step the prompts as text, and the tokens drawn."""


def make_bases(work: Path) -> dict[str, Path]:
    """Models that speak the toy language, made once: one that ends its answers, one that never does, and a scorer.

    Args:
        work: where the random models are and the runs go.

    Returns:
        The export folders by the names "ending", "endless" and "scorer".
    """
    folders = world.make_folders(work / "random")
    runs = {name: work / "bases" / name for name in ("ending", "endless", "scorer")}
    optim = OptimConfig(learning_rate=3e-3)
    common: dict[str, Any] = {"batch_size": 32, "optim": optim, "save_every": 0}
    speech = world.make_rows("sft", 4000, seed=1)
    for name, start, ends in (("ending", "policy", True), ("endless", "endless", False)):
        if not (runs[name] / "export").exists():
            data = DataConfig(add_eos=ends)
            told = SFTConfig(**common, out=str(runs[name]), model=str(folders[start]), steps=600, data=data)
            sft.run(told, dataset=speech)
    if not (runs["scorer"] / "export").exists():
        told = RewardConfig(**common, out=str(runs["scorer"]), model=str(runs["ending"]), steps=150)
        reward.run(told, dataset=world.make_rows("reward", 2000, seed=1))
    return {name: run / "export" for name, run in runs.items()}


def play_grpo(settings: Sampled, policy: Path, rows: list[dict[str, Any]], out: Path) -> tuple[Curve, Answers]:
    """GRPO against `world.liked_share`; the options are our defaults, which are TRL's, with a KL penalty.

    Args:
        settings: hyper-parameters.
        policy: folder to start from.
        rows: prompts.
        out: folder of the run; removed first.

    Returns:
        The metrics of every step, and the answers.
    """
    kl: Any = settings.kl
    options = GRPOOptions(kl_coef=settings.kl_coef, kl=kl, epochs=settings.epochs)
    config = GRPOConfig(
        **_common(settings, policy, out), rollout=_rollout(settings), grpo=options, batch_size=settings.prompts
    )
    with _recorded() as said:
        grpo.run(config, dataset=rows, rewards=[world.liked_share])
    return read_curve(out), said


def play_ppo(
    settings: Sampled, policy: Path, scorer: Path, rows: list[dict[str, Any]], out: Path
) -> tuple[Curve, Answers]:
    """PPO against a reward model, from which the critic starts too. TRL's does not clip gradients, so here neither.

    Args:
        settings: hyper-parameters.
        policy: folder to start from.
        scorer: folder of the reward model.
        rows: prompts.
        out: folder of the run; removed first.

    Returns:
        The metrics of every step, and the answers.
    """
    config = PPOConfig(
        **_common(settings, policy, out),
        reward_model=str(scorer),
        rollout=_rollout(settings),
        ppo=PPOOptions(kl_coef=settings.kl_coef, lam=settings.lam, epochs=settings.epochs),
        batch_size=settings.prompts,
    )
    with _recorded() as said:
        ppo.run(config, dataset=rows)
    return read_curve(out), said


def _common(settings: Sampled, policy: Path, out: Path) -> dict[str, Any]:
    shutil.rmtree(out, ignore_errors=True)
    return {
        "out": str(out),
        "model": str(policy),
        "steps": settings.steps,
        "seed": settings.seed,
        "log_every": 1,
        "save_every": 0,
        "optim": OptimConfig(
            learning_rate=settings.learning_rate,
            schedule="constant",
            b1=settings.b1,
            b2=settings.b2,
            eps=settings.eps,
            max_grad_norm=settings.max_grad_norm,
        ),
    }


def _rollout(settings: Sampled) -> RolloutConfig:
    return RolloutConfig(max_new_tokens=settings.length, answers=settings.answers)


@contextlib.contextmanager
def _recorded() -> Iterator[Answers]:
    """Keeps the tokens that a trainer draws: as text they would lose padding and unknown words, which can be drawn."""
    said: Answers = []

    def recording(samples: Samples, *rest: Any) -> Any:
        answers = read_answers(samples, *rest)
        rows = zip(answers.prompts, np.asarray(samples.tokens), np.asarray(samples.mask), strict=True)
        said.append([(prompt, tokens[mask].tolist()) for prompt, tokens, mask in rows])
        return answers

    with mock.patch.object(play, "read_answers", recording):
        yield said
