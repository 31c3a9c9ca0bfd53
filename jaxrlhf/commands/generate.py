"""`jaxrlhf generate`: answers to a file of prompts, in a file to rank or to train on."""

from __future__ import annotations

import collections
import json
import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax

from jaxrlhf.commands.config import GenerateConfig
from jaxrlhf.commands.sampled import AnsweredBatch, Prompts, encode_prompts, log_report, sample_batches
from jaxrlhf.data.config import DatasetConfig
from jaxrlhf.sharding.distributed import initialize, is_main
from jaxrlhf.sharding.mesh import check_batch, open_mesh
from jaxrlhf.trainers.start import load_start

log = logging.getLogger(__name__)

ANSWER_COLUMNS = ("completion", "completions", "ranks", "terminated")
"""What prompts may carry from other answers; the new answers replace them all."""


def run(config: GenerateConfig) -> None:
    """Writes one JSON line a prompt, see `answer_row`, batch by batch; the file appears when it is whole.

    Raises:
        ValueError: if the file exists, which may hold the ranks that people wrote into it, or what is read is bad.
    """
    if Path(config.out).exists():
        raise ValueError(f"{config.out} exists; write answers to a new file, or remove it first")
    initialize()
    mesh = open_mesh(config.mesh)
    check_batch(mesh, "batch_size", config.batch_size)
    with jax.set_mesh(mesh):
        policy = load_start(config.model, mesh)
        source = DatasetConfig(path=config.dataset)
        prompts = encode_prompts([source], policy.tokenizer, config.data, mesh, batch_size=config.batch_size)
        log_report(prompts.loader.index)
        batches = sample_batches(policy, prompts, config.sampling, compute=config.compute, answers=config.answers)
        rows = _rows(prompts, batches)
        if is_main():
            _write(Path(config.out), rows)
        else:
            collections.deque(rows, maxlen=0)  # its devices take part in the sampling


def answer_row(prompt: dict[str, Any], texts: list[str], terminated: list[bool]) -> dict[str, Any]:
    """The row of a prompt and its answers, with columns that the trainers read.

    Args:
        prompt: the prompt as `Index.extras` has it.
        texts: the K answers.
        terminated: whether each of them ended by itself.

    Returns:
        `prompt`; `completion`, or `completions` if there are several; `terminated`, or a list of it; and the other
        columns of the prompt. To a conversation, prompt and answers are messages.
    """
    messages = prompt.get("messages")
    answers: list[Any] = list(texts)
    if messages is not None:
        answers = [[{"role": "assistant", "content": text.strip()}] for text in texts]
    new = {
        "prompt": prompt["prompt"] if messages is None else messages,
        **({"completion": answers[0]} if len(answers) == 1 else {"completions": answers}),
        "terminated": terminated[0] if len(answers) == 1 else terminated,
    }
    replaced = {*new, "messages", *ANSWER_COLUMNS}
    return new | {name: value for name, value in prompt.items() if name not in replaced}


def _rows(prompts: Prompts, batches: Iterable[AnsweredBatch]) -> Iterator[dict[str, Any]]:
    extras = iter(prompts.loader.index.extras)
    total = prompts.loader.index.units
    written = cut = empty = 0
    for batch in batches:
        for texts, terminated in zip(batch.completions, batch.terminated.tolist(), strict=True):
            yield answer_row(next(extras), texts, terminated)
        written += len(batch.completions)
        cut += int((~batch.terminated).sum())
        empty += sum(not text.strip() for texts in batch.completions for text in texts)
        log.info("answered %d of %d prompts; %d answers cut off, %d empty", written, total, cut, empty)


def _write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Writes rows as JSON lines beside `path`, and moves the file there once it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    os.replace(partial, path)
    log.info("wrote %s", path)
