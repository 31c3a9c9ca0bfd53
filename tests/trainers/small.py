"""A model, rows and configs small enough to train in a test, in the demo's language."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxrlhf.data.config import DataConfig
from jaxrlhf.demo.language import make_prompts
from jaxrlhf.demo.texts import make_demonstrations
from jaxrlhf.demo.tokenizer import build_tokenizer
from jaxrlhf.models.config import ModelConfig
from jaxrlhf.models.decoder import init_params
from jaxrlhf.trainers import dpo, grpo, kto, ppo, rejection, reward, sft
from jaxrlhf.trainers.config import DPOConfig, KTOConfig, OptimConfig, RewardConfig, SFTConfig
from jaxrlhf.trainers.grpo_config import GRPOConfig, GRPOOptions
from jaxrlhf.trainers.ppo_config import PPOConfig, PPOOptions, PTXConfig
from jaxrlhf.trainers.rejection_config import RejectionConfig, RejectionOptions
from jaxrlhf.trainers.rollout_config import RolloutConfig
from jaxrlhf.trainers.run import Run, Trained
from jaxrlhf.trainers.start import Start

METHODS = ("sft", "reward", "kwise", "dpo", "kto", "ppo", "grpo", "rejection")


def start() -> Start:
    tokenizer = build_tokenizer()
    config = ModelConfig(
        vocab_size=216,
        hidden_size=16,
        intermediate_size=32,
        num_layers=2,
        num_heads=2,
        num_kv_heads=1,
        head_dim=8,
        max_positions=64,
    )
    return Start(config=config, params=init_params(config, jax.random.key(0)), tokenizer=tokenizer)


def demonstrations(count: int = 24, seed: int = 0) -> list[dict[str, Any]]:
    return list(make_demonstrations(seed, count))


def pairs(count: int = 24) -> list[dict[str, Any]]:
    chosen, rejected = make_demonstrations(0, count), make_demonstrations(1, count)
    both = zip(chosen, rejected, strict=True)
    return [
        {"prompt": a["prompt"], "chosen": a["completion"], "rejected": b["completion"] + " thanks !"} for a, b in both
    ]


def labelled(count: int = 24) -> list[dict[str, Any]]:
    rows = make_demonstrations(0, count)
    return [
        {**row, "completion": row["completion"] + ("" if number % 2 else " thanks !"), "label": number % 2 > 0}
        for number, row in enumerate(rows)
    ]


def rankings(count: int = 24) -> list[dict[str, Any]]:
    texts = [row["completion"] for row in make_demonstrations(2, 7 * count)]
    rows = []
    for number, prompt in enumerate(make_prompts(0, count)):
        answers = texts[7 * number : 7 * number + 4 + number % 3]
        rows.append({"prompt": prompt, "completions": answers, "ranks": list(range(1, len(answers) + 1))})
    return rows


def prompts(count: int = 24) -> list[dict[str, Any]]:
    return [
        {"prompt": prompt, "wanted": "room" if number % 2 else "staff"}
        for number, prompt in enumerate(make_prompts(3, count))
    ]


def mentions(prompts: list[str], completions: list[str], wanted: list[str], **columns: Any) -> list[float]:
    """A reward that reads a column of the data."""
    assert not columns
    return [float(word in text) for word, text in zip(wanted, completions, strict=True)]


def always_one(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    return [1.0] * len(completions)


def config(method: str, out: Path, **changes: Any) -> Any:
    base: dict[str, Any] = {
        "out": str(out),
        "batch_size": 8,
        "steps": 4,
        "log_every": 1,
        "save_every": 2,
        "data": DataConfig(max_length=48),
        "optim": OptimConfig(learning_rate=1e-2, schedule="cosine", weight_decay=0.01),
    }
    classes = {
        "sft": SFTConfig,
        "reward": RewardConfig,
        "kwise": RewardConfig,
        "dpo": DPOConfig,
        "kto": KTOConfig,
        "ppo": PPOConfig,
        "grpo": GRPOConfig,
        "rejection": RejectionConfig,
    }
    if method == "ppo_options":
        return ppo_with_options(config("ppo", out, **changes))
    if method in ("ppo", "grpo", "rejection"):
        base[method] = {
            "ppo": PPOOptions(epochs=2, mini_batches=2),
            "grpo": GRPOOptions(epochs=2, kl_coef=0.1),  # so that answers share the row of their prompt
            "rejection": RejectionOptions(epochs=2),
        }[method]
        base["rollout"] = RolloutConfig(max_new_tokens=6, answers=2)
        base["samples_every"] = 1
    return classes[method](**{**base, **changes})


def ppo_with_options(plain: PPOConfig) -> PPOConfig:
    """All that PPO can carry from one rollout to the next, and all that can leave an update out."""
    options = dataclasses.replace(
        plain.ppo, kl="exact", kl_target=0.01, kl_horizon=64, normalize_scores="standardize", score_clip=1.5,
        entropy_coef=0.01, early_stop_kl=1e-4, critic_warmup_steps=1,
    )  # fmt: skip
    ptx = PTXConfig(coef=0.5, batch_size=8, data=DataConfig(max_length=48))
    return dataclasses.replace(plain, ppo=options, ptx=ptx)


def train(method: str, out: Path, model: Start | None = None, **changes: Any) -> Trained:
    """Runs a method on its small data."""
    settings, model = config(method, out, **changes), start() if model is None else model
    if method == "sft":
        return sft.run(settings, model=model, dataset=demonstrations(), eval_dataset=demonstrations(5, seed=9))
    if method == "reward":
        return reward.run(settings, model=model, dataset=pairs(), eval_dataset=pairs(5))
    if method == "kwise":
        return reward.run(settings, model=model, dataset=rankings(), eval_dataset=rankings(5))
    if method == "dpo":
        return dpo.run(settings, model=model, dataset=pairs(), eval_dataset=pairs(5))
    if method == "kto":
        return kto.run(settings, model=model, dataset=labelled(), eval_dataset=labelled(5))
    data = {"dataset": prompts(), "eval_dataset": prompts(5), "rewards": [mentions]}
    if method in ("grpo", "rejection"):
        return {"grpo": grpo.run, "rejection": rejection.run}[method](settings, model=model, **data)
    texts = demonstrations() if method == "ppo_options" else None
    return ppo.run(settings, model=model, ptx_dataset=texts, **data)


def stop_after(step: str) -> None:
    """Makes this process leave, without an error, once a run has saved a step."""
    save = Run.save

    def save_and_leave(self: Run, now: int, *arguments: Any) -> None:
        save(self, now, *arguments)
        if str(now) == step:
            self.checkpoints.wait()
            sys.exit(0)

    Run.save = save_and_leave


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without what the clock says."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if not name.startswith("time/")} for line in lines]


def samples(folder: Path) -> list[dict[str, Any]]:
    return _lines(folder / "samples.jsonl")


def histograms(folder: Path) -> list[dict[str, Any]]:
    return _lines(folder / "histograms.jsonl")


def events(folder: Path) -> list[dict[str, Any]]:
    return _lines(folder / "events.jsonl")


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def assert_same_params(left: Start, right: Start) -> None:
    jax.tree.map(np.testing.assert_array_equal, left.params, right.params)


def with_steps(settings: Any, steps: int) -> Any:
    return dataclasses.replace(settings, steps=steps)
