"""`jaxrlhf generate`: answers to a file of prompts, in a file to rank or to train on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from jaxrlhf.commands.config import GenerateConfig
from jaxrlhf.commands.files import check_new
from jaxrlhf.commands.sampled import draw_answers, open_prompts, write_sampled
from jaxrlhf.commands.sampling import AnsweredBatch

ANSWER_COLUMNS = ("completion", "completions", "ranks", "terminated")
"""What prompts may carry from other answers; the new answers replace them all."""


def run(config: GenerateConfig) -> None:
    """Writes one JSON line a prompt, see `answer_row`, batch by batch; the file appears when it is whole.

    Raises:
        ValueError: if the file exists, which may hold the ranks that people wrote into it, or what is read is bad.
    """
    check_new(config.out, "answers")
    with open_prompts(config) as (policy, prompts):
        write_sampled(config.out, _rows(draw_answers(config, policy, prompts)))


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
