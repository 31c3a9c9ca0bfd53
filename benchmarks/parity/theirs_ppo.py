"""TRL's side of PPO, for a Python that has trl 1.12, the last with a PPO trainer: a request as JSON in, curves out.

python -m benchmarks.parity.theirs_ppo REQUEST.json RESULT.json
"""

from __future__ import annotations

import inspect
import json
import sys
import tempfile
import textwrap
from pathlib import Path
from typing import Any

import torch
import trl
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

from benchmarks.parity.settings import Sampled
from benchmarks.parity.theirs import arguments

ON_THE_LAST_TOKEN = {
    "actual_end = torch.where(sequence_lengths_p1 < rewards.size(1), sequence_lengths_p1, sequence_lengths)": (
        "actual_end = sequence_lengths"
    ),
    "padding_mask_p1 = response_idxs > (sequence_lengths_p1.unsqueeze(1))": "padding_mask_p1 = padding_mask",
}
"""The two lines of TRL's `train` that put the score, and a value, at the position after an ended answer."""


class Steps(PPOTrainer):
    """TRL's trainer, whose log is kept."""

    lines: list[dict[str, float]]

    def log(self, logs: dict[str, float], *_: Any, **__: Any) -> None:
        """Keeps a step's line."""
        self.lines.append({name: float(value) for name, value in logs.items()})


def play(request: dict[str, Any]) -> dict[str, list[float]]:
    """Plays PPO and returns what TRL logs, step by step.

    Args:
        request: `settings`, the folders `policy` and `scorer`, `rows` as they are visited, `answers` to learn from or
            null, and `moved`: whether the score is put on the last token, where TRL puts it behind.
    """
    settings = Sampled(**request["settings"])
    torch.set_num_threads(1)  # of a tiny model more would only wait for each other
    torch.manual_seed(settings.seed)
    tokenizer = AutoTokenizer.from_pretrained(request["policy"], padding_side="left")
    ids = [tokenizer(row["prompt"], add_special_tokens=False)["input_ids"] for row in request["rows"]]
    data = Dataset.from_list([{"input_ids": row} for row in ids])

    def policy() -> Any:
        return AutoModelForCausalLM.from_pretrained(request["policy"], dtype=torch.float32)

    def scorer() -> Any:
        return AutoModelForSequenceClassification.from_pretrained(request["scorer"], num_labels=1, dtype=torch.float32)

    with tempfile.TemporaryDirectory() as folder:
        told = arguments(settings, folder) | {"max_grad_norm": 1.0}  # which TRL's PPO does not read
        config = PPOConfig(
            **told,
            per_device_train_batch_size=settings.prompts,
            gradient_accumulation_steps=1,
            num_mini_batches=1,
            num_ppo_epochs=settings.epochs,
            local_rollout_forward_batch_size=settings.prompts,
            response_length=settings.length,
            temperature=1.0,
            stop_token="eos",
            total_episodes=settings.prompts * settings.steps,
            num_sample_generations=0,
            kl_coef=settings.kl_coef,
            vf_coef=1.0,
            lam=settings.lam,
            lr_scheduler_type="constant",
        )
        trainer = Steps(
            args=config,
            processing_class=tokenizer,
            model=policy(),
            ref_model=policy(),
            reward_model=scorer(),
            value_model=scorer(),
            train_dataset=data,
            eval_dataset=data.select(range(2)),
        )
        trainer.lines = []
        loader: Any = torch.utils.data.DataLoader(data, batch_size=settings.prompts, collate_fn=trainer.data_collator)
        trainer.dataloader = loader  # in order: TRL's own shuffles
        if request["answers"] is not None:
            ppo_trainer.batch_generation = _replay(request["answers"], tokenizer, settings.length)
        (_moved(trainer) if request["moved"] else trainer.train)()
    return {name: [line[name] for line in trainer.lines] for name in trainer.lines[0]}


def _replay(answers: list[list[tuple[str, list[int]]]], tokenizer: Any, length: int) -> Any:
    """In place of TRL's sampling: the recorded answers, and the policy's logits on them."""
    steps = iter(answers)

    @torch.no_grad()
    def generation(model: Any, queries: Any, size: int, pad: int, config: Any) -> tuple[Any, Any]:
        del size
        said = next(steps)
        prompts = tokenizer.batch_decode(queries, skip_special_tokens=True)
        if [prompt for prompt, _ in said] != prompts:
            raise ValueError("the prompts come in another order than the recorded answers")
        rows = torch.full((len(said), length), pad)
        for row, (_, tokens) in zip(rows, said, strict=True):
            row[: len(tokens)] = torch.tensor(tokens)
        whole = torch.cat([queries, rows], dim=1)
        logits = ppo_trainer.forward(model, whole, pad).logits[:, queries.shape[1] - 1 : -1]
        return whole, logits / config.temperature

    return generation


def _moved(trainer: Any) -> Any:
    """TRL's `train` with `ON_THE_LAST_TOKEN`."""
    source = textwrap.dedent(inspect.getsource(PPOTrainer.train))
    for theirs, ours in ON_THE_LAST_TOKEN.items():
        if source.count(theirs) != 1:
            raise ValueError(f"this trl has no line {theirs!r}")
        source = source.replace(theirs, ours)
    scope: dict[str, Any] = {}
    exec(compile(source, ppo_trainer.__file__, "exec"), vars(ppo_trainer), scope)  # TRL's own text, two lines changed
    return scope["train"].__get__(trainer)


if __name__ == "__main__":
    asked, answered = map(Path, sys.argv[1:])
    curve = play(json.loads(asked.read_text(encoding="utf-8")))
    answered.write_text(json.dumps({"curve": curve, "trl": trl.__version__}), encoding="utf-8")
