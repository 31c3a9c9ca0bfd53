"""TRL's side of GRPO: its trainer, sampling by itself or given the answers that we drew."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import torch
import trl
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.parity.settings import Sampled
from benchmarks.parity.theirs import Recorder, arguments
from benchmarks.parity.world import liked_share

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # `rollout_func` says on every use that it may change


def play(
    settings: Sampled,
    policy: Path,
    rows: list[dict[str, Any]],
    answers: list[list[tuple[str, list[int]]]] | None = None,
) -> dict[str, list[float]]:
    """Plays GRPO against `world.liked_share` and returns what TRL logs, step by step.

    Args:
        settings: hyper-parameters.
        policy: folder to start from.
        rows: prompts, as they are visited.
        answers: what to learn from at every step, in place of answers that TRL draws.
    """
    torch.set_num_threads(1)  # of a tiny model more would only wait for each other
    torch.manual_seed(settings.seed)
    tokenizer = AutoTokenizer.from_pretrained(policy)
    recorder = Recorder()
    with tempfile.TemporaryDirectory() as folder:
        config = trl.GRPOConfig(
            **arguments(settings, folder),
            max_steps=settings.steps,
            per_device_train_batch_size=settings.prompts * settings.answers,
            num_generations=settings.answers,
            max_completion_length=settings.length,
            num_iterations=settings.epochs,
            steps_per_generation=1,
            beta=settings.kl_coef,
            use_bias_correction_kl=settings.kl == "unbiased",
            lr_scheduler_type="constant",
            weight_decay=0.0,
            shuffle_dataset=False,
        )
        trl.GRPOTrainer(
            AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32),
            reward_funcs=liked_share,
            args=config,
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            callbacks=[recorder],
            rollout_func=None if answers is None else _replay(answers, tokenizer),
        ).train()
    return recorder.curve()


def _replay(answers: list[list[tuple[str, list[int]]]], tokenizer: Any) -> Any:
    steps = iter(answers)

    def rollout(prompts: list[str], trainer: Any) -> dict[str, Any]:
        del trainer
        said = next(steps)
        if [prompt for prompt, _ in said] != prompts:
            raise ValueError("the prompts come in another order than the recorded answers")
        ids = [tokens for _, tokens in said]
        return {
            "prompt_ids": [tokenizer(prompt, add_special_tokens=False)["input_ids"] for prompt in prompts],
            "completion_ids": ids,
            "logprobs": [[0.0] * len(row) for row in ids],  # read with vLLM alone
        }

    return rollout
