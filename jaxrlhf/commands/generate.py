"""`jaxrlhf generate`: answers to a file of prompts, in a file to rank or to train on."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax

from jaxrlhf.commands.config import GenerateConfig
from jaxrlhf.commands.files import check_new, write_rows
from jaxrlhf.commands.sampled import AnsweredBatch, encode_prompts, log_answers, log_report, sample_batches
from jaxrlhf.data.config import DatasetConfig
from jaxrlhf.sharding.distributed import initialize, is_main
from jaxrlhf.sharding.mesh import check_batch, open_mesh
from jaxrlhf.trainers.start import load_start

ANSWER_COLUMNS = ("completion", "completions", "ranks", "terminated")
"""What prompts may carry from other answers; the new answers replace them all."""


def run(config: GenerateConfig) -> None:
    """Writes one JSON line a prompt, see `answer_row`, batch by batch; the file appears when it is whole.

    Raises:
        ValueError: if the file exists, which may hold the ranks that people wrote into it, or what is read is bad.
    """
    check_new(config.out, "answers")
    initialize()
    mesh = open_mesh(config.mesh)
    check_batch(mesh, "batch_size", config.batch_size)
    with jax.set_mesh(mesh):
        policy = load_start(config.model, mesh)
        source = DatasetConfig(path=config.dataset)
        prompts = encode_prompts([source], policy.tokenizer, config.data, mesh, batch_size=config.batch_size)
        log_report(prompts.loader.index)
        batches = sample_batches(policy, prompts, config.sampling, compute=config.compute, answers=config.answers)
        rows = _rows(log_answers(batches, prompts))
        if is_main():
            write_rows(Path(config.out), rows)
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


def _rows(batches: Iterable[AnsweredBatch]) -> Iterator[dict[str, Any]]:
    for batch in batches:
        for answered in zip(batch.rows, batch.completions, batch.terminated.tolist(), strict=True):
            yield answer_row(*answered)
