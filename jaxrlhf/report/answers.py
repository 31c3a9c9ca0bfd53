"""Sampled answers to look at: the same prompts over the steps of a run or over runs, the best and the worst."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jaxrlhf.report.cards import folded, section
from jaxrlhf.report.folder import RunRecord
from jaxrlhf.report.markup import Markup, join, tag
from jaxrlhf.report.numbers import count, plural, short, usable

SHOWN_PROMPTS = 8
"""Held-out prompts of the page; runs write as many."""

OPEN_PROMPTS = 4
"""The others are seen on asking."""

SHOWN_STEPS = 4
"""Steps of the page, the first and the last among them: as many answers stand side by side."""

SHOWN_ROWS = 4
"""First rows of a training batch, where there are no answers to held-out prompts."""

Sample = Mapping[str, Any]


def answers_of(run: RunRecord, characters: int) -> Markup:
    """The answers of a run: to held-out prompts over the steps if there are any, and the best and worst in training.

    Args:
        run: the run.
        characters: most of a text that is shown.
    """
    evaluated = [sample for sample in run.samples if sample.get("split") == "eval"]
    trained = [sample for sample in run.samples if sample.get("split", "train") == "train"]
    return join(
        section("Answers to held-out prompts", _over_steps(evaluated, characters)),
        section("Answers in training", _batches(trained, characters, firsts=0 if evaluated else SHOWN_ROWS)),
    )


def answers_compared(runs: Sequence[RunRecord], characters: int) -> Markup:
    """The last answers of several runs to the held-out prompts that all of them have; nothing if there are none.

    Args:
        runs: two or more.
        characters: most of a text that is shown.
    """
    by_run = [_last_by_prompt(run) for run in runs]
    shared = [prompt for prompt in by_run[0] if all(prompt in own for own in by_run)]
    blocks = [
        _block(
            _cut_before(_text(prompt), characters),
            [
                _answer(own[prompt], f"{run.name}, step {own[prompt]['step']:,}", characters)
                for run, own in zip(runs, by_run, strict=True)
            ],
        )
        for prompt in shared[:SHOWN_PROMPTS]
    ]
    return section("Answers side by side", _first_open(blocks))


def chosen_steps(steps: Iterable[int], at_most: int) -> list[int]:
    """Some of the steps, evenly, the first and the last among them."""
    known = sorted(set(steps))
    if len(known) <= at_most:
        return known
    return [known[number * (len(known) - 1) // (at_most - 1)] for number in range(at_most)]


def _over_steps(samples: Sequence[Sample], characters: int) -> Markup:
    """A block for each prompt, with the answers of some steps in their order."""
    steps = chosen_steps((sample["step"] for sample in samples), SHOWN_STEPS)
    prompts: dict[tuple[str, int], dict[int, Sample]] = {}
    for step in steps:
        seen: dict[str, int] = {}
        for sample in samples:
            if sample["step"] == step:
                text = _text(sample["prompt"])
                seen[text] = seen.get(text, 0) + 1  # a prompt may stand in the data twice
                prompts.setdefault((text, seen[text]), {})[step] = sample
    blocks = [
        _block(
            _cut_before(text, characters),
            [_answer(sample, f"step {step:,}", characters) for step, sample in by_step.items()],
        )
        for (text, _), by_step in list(prompts.items())[:SHOWN_PROMPTS]
    ]
    return _first_open(blocks)


def _first_open(blocks: Sequence[Markup]) -> Markup:
    left = blocks[OPEN_PROMPTS:]
    return join(*blocks[:OPEN_PROMPTS], folded(plural(len(left), "more prompt"), *left))


def _batches(samples: Sequence[Sample], characters: int, firsts: int) -> Markup:
    """A block for each of some steps, with some first rows of the batch, its best and its worst answer."""
    blocks = []
    for step in reversed(chosen_steps((sample["step"] for sample in samples), SHOWN_STEPS)):
        rows = [sample for sample in samples if sample["step"] == step]
        picked = [row for row in rows if row.get("pick") in ("best", "worst")]
        picked += [row for row in rows if row not in picked][:firsts]
        cells = [_answer(row, str(row.get("pick", "first")), characters, with_prompt=True) for row in picked]
        if cells:
            blocks.append(_block(f"Step {step:,}", cells))
    return join(*blocks)


def _last_by_prompt(run: RunRecord) -> dict[str, Sample]:
    evaluated = [sample for sample in run.samples if sample.get("split") == "eval"]
    last = max((sample["step"] for sample in evaluated), default=0)
    return {_text(sample["prompt"]): sample for sample in evaluated if sample["step"] == last}


def _block(head: str, cells: Sequence[str]) -> Markup:
    return tag("div", tag("h3", head, dir="auto"), tag("div", *cells, class_="answers"), class_="block")


def _answer(sample: Sample, head: str, characters: int, *, with_prompt: bool = False) -> Markup:
    text = _text(sample["completion"])
    prompt = _cut_before(_text(sample["prompt"]), characters)
    score = _score_of(sample)
    return tag(
        "div",
        tag("div", tag("span", head), None if score is None else tag("b", short(score)), class_="top"),
        tag("p", prompt, class_="prompt", dir="auto") if with_prompt else None,
        tag("p", _cut_after(text, characters), dir="auto") if text else tag("p", "no text", class_="note"),
        _remarks(sample),
        class_="answer",
    )


def _remarks(sample: Sample) -> Markup:
    """What else is known of an answer: that it was cut off, and its single rewards if there are several."""
    parts = ["cut off"] if sample.get("terminated") is False else []
    scores = sample.get("scores")
    if isinstance(scores, dict) and len(scores) > 1:
        parts += [f"{name} {short(usable(value))}" for name, value in scores.items()]
    return tag("p", " · ".join(parts), class_="note") if parts else Markup()


def _score_of(sample: Sample) -> float | None:
    """The total; of runs that did not write it, the only score."""
    scores = sample.get("scores")
    only = list(scores.values())[0] if isinstance(scores, dict) and len(scores) == 1 else None
    return usable(sample.get("score", only))


def _text(value: Any) -> str:
    """A text as it is, and anything else, such as a conversation, as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _cut_after(text: str, characters: int) -> str:
    left = len(text) - characters
    return text if left <= 0 else f"{text[:characters]} … ({count(left)} more characters)"


def _cut_before(text: str, characters: int) -> str:
    """Keeps the end of a prompt, which is what the answer answers."""
    left = len(text) - characters
    return text if left <= 0 else f"({count(left)} more characters) … {text[-characters:]}"
