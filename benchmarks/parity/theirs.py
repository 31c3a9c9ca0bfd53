"""TRL's side of SFT, reward modelling, DPO and KTO: its trainers, with its own preparation of the rows."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
import trl
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback

from benchmarks.parity.settings import Settings


class Recorder(TrainerCallback):
    """Keeps what the trainer logs, unrounded."""

    def __init__(self) -> None:
        """Starts with no steps."""
        self.lines: list[dict[str, float]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Keeps a step's line; the summary at the end has no loss of a step."""
        if "loss" in logs:
            self.lines.append({name: value for name, value in logs.items() if isinstance(value, int | float)})

    def curve(self) -> dict[str, list[float]]:
        """Name of a metric -> its value at every step."""
        names = set.intersection(*(set(line) for line in self.lines))
        return {name: [line[name] for line in self.lines] for name in sorted(names)}


def arguments(settings: Any, folder: str) -> dict[str, Any]:
    """What every TRL trainer is told: the same optimizer, no mixed precision, nothing recomputed, no shuffling."""
    return {
        "output_dir": folder,
        "learning_rate": settings.learning_rate,
        "adam_beta1": settings.b1,
        "adam_beta2": settings.b2,
        "adam_epsilon": settings.eps,
        "max_grad_norm": settings.max_grad_norm,
        "warmup_steps": 0,
        "bf16": False,
        "use_cpu": True,
        "gradient_checkpointing": False,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": settings.seed,
    }


def train(method: str, settings: Settings, model: Path, rows: list[dict[str, Any]]) -> dict[str, list[float]]:
    """Trains by a method on rows, in the order they have, and returns what TRL logs, step by step.

    Args:
        method: sft, reward, dpo or kto.
        settings: hyper-parameters.
        model: folder to start from.
        rows: `settings.rows` times `settings.steps` rows, as they are visited.
    """
    kinds = {
        "sft": (trl.SFTConfig, trl.SFTTrainer, {}),
        "reward": (trl.RewardConfig, trl.RewardTrainer, {"center_rewards_coefficient": settings.center_coef}),
        "dpo": (trl.DPOConfig, trl.DPOTrainer, {"beta": settings.beta}),
        "kto": (trl.KTOConfig, trl.KTOTrainer, {"beta": settings.beta, "desirable_weight": settings.desirable_weight}),
    }
    config, trainer, own = kinds[method]
    torch.set_num_threads(1)  # of a tiny model more would only wait for each other
    start = AutoModelForSequenceClassification if method == "reward" else AutoModelForCausalLM
    policy = start.from_pretrained(model, dtype=torch.float32)
    if method in ("dpo", "kto"):
        reference = {"ref_model": start.from_pretrained(model, dtype=torch.float32)}
    else:
        reference = {}
    recorder = Recorder()
    with tempfile.TemporaryDirectory() as folder:
        settled = config(
            **arguments(settings, folder),
            **own,
            max_steps=settings.steps,
            per_device_train_batch_size=settings.rows // settings.parts,
            gradient_accumulation_steps=settings.parts,
            lr_scheduler_type=settings.schedule,
            weight_decay=settings.weight_decay,
            train_sampling_strategy="sequential",
        )
        trainer(
            policy,
            args=settled,
            train_dataset=Dataset.from_list(rows),
            processing_class=AutoTokenizer.from_pretrained(model),
            callbacks=[recorder],
            **reference,
        ).train()
    return recorder.curve()
