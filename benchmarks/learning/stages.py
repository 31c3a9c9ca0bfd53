"""The rows of the table that are trained, each a call of a trainer on rows in memory; see `jaxrlhf/demo/road.py`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxrlhf.checkpoint.state import Checkpoints
from jaxrlhf.commands.export import read_params
from jaxrlhf.data.config import DataConfig
from jaxrlhf.demo import road
from jaxrlhf.demo.config import DemoConfig
from jaxrlhf.demo.gold import gold_score
from jaxrlhf.demo.language import held_out_prompts, make_prompts
from jaxrlhf.demo.road import Row
from jaxrlhf.demo.texts import make_pretraining_text
from jaxrlhf.trainers import grpo, kto, ppo, rejection
from jaxrlhf.trainers.config import KTOConfig, OptimConfig
from jaxrlhf.trainers.grpo_config import GRPOConfig, GRPOOptions
from jaxrlhf.trainers.ppo_config import PPOConfig, PTXConfig
from jaxrlhf.trainers.rejection_config import RejectionConfig, RejectionOptions
from jaxrlhf.trainers.rollout_config import RolloutConfig
from jaxrlhf.trainers.start import Start

EVALUATE_EVERY = 10
"""Steps between two evaluations of the methods that sample, on the held-out prompts."""

LONGER = 3
"""How many times as many steps as PPO the run without a KL penalty takes, to see what comes of it."""

FREE = "ppo-free"
"""Folder of the run without a KL penalty."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ground:
    """Where all rows of a seed begin.

    Attributes:
        config: of the demo.
        sft: the fine-tuned policy.
        scorer: the reward model.
        rankings: answers of the policy, ranked with label noise.
    """

    config: DemoConfig
    sft: Start
    scorer: Start
    rankings: list[Row]

    @property
    def prompts(self) -> list[str]:
        """The held-out prompts."""
        return held_out_prompts()[: self.config.sizes.held_out_prompts]


def pretrain_and_fine_tune(config: DemoConfig) -> Start:
    """The policy that all others start from."""
    return road.fine_tune(config, road.pretrain(config).model).model


def lay_ground(config: DemoConfig, sft: Start) -> Ground:
    """Samples and ranks answers, and trains the reward model, or reads what of it is there."""
    seed = road.seed_of(config, 3)
    prompts = {"train": make_prompts(seed, config.sizes.ranked_prompts), "held-out": held_out_prompts()}
    seeds = {"train": seed, "held-out": road.seed_of(config, 5)}
    rows = {name: _ranked(config, sft, name, prompts[name], seeds[name]) for name in prompts}
    scorer = road.train_reward(config, sft, rows["train"], rows["held-out"]).model
    return Ground(config=config, sft=sft, scorer=scorer, rankings=rows["train"])


def _ranked(config: DemoConfig, sft: Start, name: str, prompts: list[str], seed: int) -> list[Row]:
    path = Path(config.out) / f"rankings-{name}.json"
    if not path.exists():
        rows = road.rank(config, sft, prompts[: config.sizes.held_out_prompts] if name == "held-out" else prompts, seed)
        path.write_text(json.dumps(rows), encoding="utf-8")
    return json.loads(path.read_text(encoding="utf-8"))


def train_dpo(ground: Ground) -> Start:
    """DPO as in the demo."""
    return road.train_dpo(ground.config, ground.sft, ground.rankings).model


def train_kto(ground: Ground) -> Start:
    """KTO on the same answers as DPO, each by itself: the first of a ranking is good, the last is bad."""
    return kto.run(
        KTOConfig(
            out=_folder(ground, "kto"),
            beta=0.2,
            batch_size=64,
            steps=ground.config.sizes.dpo_steps,
            seed=ground.config.seed,
            log_every=25,
            data=DataConfig(max_length=road.MAX_LENGTH),
            optim=OptimConfig(learning_rate=3e-4, schedule="cosine", warmup_steps=10),
            compute=road.compute(ground.sft),
        ),
        model=ground.sft,
        dataset=[single for row in ground.rankings for single in _singles(row)],
    ).model


def _singles(row: Row) -> list[Row]:
    pair = road.extreme_pair(row)
    return [
        {"prompt": pair["prompt"], "completion": pair[name], "label": label}
        for name, label in (("chosen", True), ("rejected", False))
    ]


def train_ppo(ground: Ground) -> Start:
    """PPO as in the demo, looked at along the way."""
    return run_ppo(ground, road.ppo_config(ground.config, ground.sft))


def train_ppo_free(ground: Ground) -> Start:
    """PPO without a KL penalty, for longer."""
    config = road.ppo_config(ground.config, ground.sft)
    return run_ppo(
        ground,
        dataclasses.replace(
            config,
            out=_folder(ground, FREE),
            steps=LONGER * ground.config.sizes.ppo_steps,
            save_every=EVALUATE_EVERY,
            keep=10**6,
            ppo=dataclasses.replace(config.ppo, kl_coef=0.0),
        ),
    )


def run_ppo(ground: Ground, config: PPOConfig, ptx_dataset: list[Row] | None = None) -> Start:
    """PPO against the reward model; gold is written down beside it, with weight 0."""
    config = dataclasses.replace(config, **_watched(ground))
    return ppo.run(config, **_given(ground), ptx_dataset=ptx_dataset).model


def train_ppo_ptx(ground: Ground) -> Start:
    """PPO that goes on reading the texts of pretraining, against forgetting."""
    config = road.ppo_config(ground.config, ground.sft)
    texts = PTXConfig(coef=0.3, batch_size=32, data=DataConfig(max_length=48))
    return run_ppo(
        ground,
        dataclasses.replace(config, out=_folder(ground, "ppo-ptx"), ptx=texts),
        ptx_dataset=make_pretraining_text(road.seed_of(ground.config, 0), 16000),
    )


def train_grpo(ground: Ground) -> Start:
    """GRPO against the reward model, at PPO's learning rate."""
    return _run_grpo(ground, "grpo", 3e-4)


def train_grpo_slowly(ground: Ground) -> Start:
    """GRPO at a third of the learning rate."""
    return _run_grpo(ground, "grpo-slow", 1e-4)


def _run_grpo(ground: Ground, run: str, learning_rate: float) -> Start:
    options = GRPOOptions(kl_coef=0.05, epochs=2, mini_batches=2)
    config = GRPOConfig(out=_folder(ground, run), grpo=options, **_grouped(ground, learning_rate))
    return grpo.run(config, **_given(ground)).model


def train_rejection(ground: Ground) -> Start:
    """Rejection sampling: the best of eight answers to each prompt, by the reward model, is imitated."""
    options = RejectionOptions(epochs=2)
    config = RejectionConfig(
        out=_folder(ground, "rejection"), rejection=options, **_grouped(ground, learning_rate=1e-4)
    )
    return rejection.run(config, **_given(ground)).model


def _grouped(ground: Ground, learning_rate: float) -> dict[str, Any]:
    """The config of methods that draw several answers to a prompt: as many answers a step as PPO, eight to a prompt."""
    config, answers = road.ppo_config(ground.config, ground.sft), 8
    return {
        "batch_size": config.batch_size // answers,
        "steps": config.steps,
        "seed": config.seed,
        "optim": OptimConfig(learning_rate=learning_rate, schedule="constant"),
        "compute": config.compute,
        "rollout": RolloutConfig(max_new_tokens=road.MAX_NEW_TOKENS, answers=answers),
        **_watched(ground),
    }


def _given(ground: Ground) -> dict[str, Any]:
    """What the methods that sample are given in memory."""
    return {
        "model": ground.sft,
        "reward_model": ground.scorer,
        "dataset": road.ppo_prompts(ground.config),
        "eval_dataset": [{"prompt": prompt} for prompt in ground.prompts],
        "rewards": [gold],
    }


def gold(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
    """The gold score as a reward; its weight is 0, so it is written down and never optimised."""
    return [gold_score(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)]


def checkpoint(ground: Ground, run: str, step: int) -> Start:
    """The policy of a run after so many steps."""
    return dataclasses.replace(ground.sft, params=read_params(Path(_folder(ground, run)) / "checkpoints", step))


def checkpoints(ground: Ground, run: str) -> list[int]:
    """The steps after which a run has a checkpoint."""
    return Checkpoints(Path(_folder(ground, run)) / "checkpoints").steps()


def _watched(ground: Ground) -> dict[str, Any]:
    """What a run writes down beside its training."""
    prompts = len(ground.prompts)
    return {
        "log_every": 5,
        "eval_every": EVALUATE_EVERY,
        "eval_batch_size": prompts,
        "reward_weights": (1.0, 0.0),
        "samples_every": 10,
    }


def _folder(ground: Ground, stage: str) -> str:
    return f"{ground.config.out}/{stage}"
