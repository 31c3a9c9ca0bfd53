"""Texts of the toy language: demonstrations of mixed quality, and something to pretrain on. See `language.py`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from jaxrlhf.demo import words
from jaxrlhf.demo.language import Task, make_prompts, parse_prompt, training_tasks
from jaxrlhf.demo.words import Mood

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Habits:
    """How often a writer does what; probabilities in [0, 1]. All choices are independent.

    Attributes:
        topic: a statement is about the aspect that was asked for, and not about another one of the place.
        mood: a statement has the mood of the prompt.
        detail: its word is concrete.
        reason: it gives a reason.
        takes_back: a statement without a reason goes on "but", and says the opposite.
        chatter: one sentence is beside the point.
        repeat: where there is no chatter, one aspect is described twice.
        closing: the answer ends with a closing.
    """

    topic: float
    mood: float
    detail: float
    reason: float
    takes_back: float
    chatter: float
    repeat: float
    closing: float


DEMONSTRATOR = Habits(
    topic=1.0, mood=0.88, detail=0.35, reason=0.35, takes_back=0.15, chatter=0.4, repeat=0.1, closing=0.4
)
"""Writes the demonstrations: mixed quality, as people's are.

They keep to the aspects that were asked for. That an answer strays from them is what a tiny reward model learns last,
since it must compare words, and the score hangs on it more than on anything else.
"""

PASSER_BY = Habits(topic=1.0, mood=0.95, detail=0.5, reason=0.5, takes_back=0.2, chatter=0.4, repeat=0.1, closing=0.5)
"""Writes the reviews in the pretraining text: heeds the prompt, so that a model learns to look it up."""


def make_demonstrations(seed: int, count: int) -> list[dict[str, str]]:
    """Writes answers of mixed quality to the prompts of `make_prompts(seed, count)`.

    Args:
        seed: rows are a function of it.
        count: how many, from 1 to 21760.

    Returns:
        Rows with fields `prompt` and `completion`; the completion has at most 23 words.

    Raises:
        ValueError: if there are not that many prompts.
    """
    rng = np.random.default_rng((seed, 1))
    return [
        {"prompt": prompt, "completion": write_answer(rng, parse_prompt(prompt), DEMONSTRATOR)}
        for prompt in make_prompts(seed, count)
    ]


def make_pretraining_text(seed: int, count: int) -> list[dict[str, str]]:
    """Writes reviews, prompts with answers that heed them most of the time, and a story in place of every fourth.

    Args:
        seed: rows are a function of it.
        count: how many.

    Returns:
        Rows with the field `text`, of at most 34 words.
    """
    rng = np.random.default_rng((seed, 2))
    return [{"text": _write_review(rng) if index % 4 else _write_story(rng)} for index in range(count)]


def write_answer(rng: np.random.Generator, task: Task, habits: Habits) -> str:
    """Writes one answer.

    Args:
        rng: source of the choices; it is advanced.
        task: what to write about.
        habits: how well.

    Returns:
        One to five sentences, at most 23 words, separated by single spaces.
    """
    moods: list[Mood] = [task.mood if rng.random() < habits.mood else _opposite(task.mood) for _ in task.aspects]
    others = [aspect for aspect in words.PLACES[task.place] if aspect not in task.aspects]
    aspects = [aspect if rng.random() < habits.topic else _pick(rng, others) for aspect in task.aspects]
    sentences = [_state(rng, aspect, mood, habits) for aspect, mood in zip(aspects, moods, strict=True)]
    if rng.random() < habits.chatter:
        sentences.insert(int(rng.integers(3)), " ".join(_pick(rng, words.CHATTER)))
    elif rng.random() < habits.repeat:
        again = int(rng.integers(2))
        sentences.append(f"the {aspects[again]} was {_adjective(rng, aspects[again], moods[again], habits.detail)} .")
    if rng.random() < habits.closing:
        sentences.append(" ".join(_pick(rng, words.CLOSINGS)))
    return " ".join(sentences)


def _state(rng: np.random.Generator, aspect: str, mood: Mood, habits: Habits) -> str:
    statement = f"the {aspect} was {_adjective(rng, aspect, mood, habits.detail)}"
    if rng.random() < habits.reason:
        noun, verb = _pick(rng, words.FAMILY_OF[aspect].reasons[mood])
        return f"{statement} because {noun} {verb} ."
    if rng.random() < habits.takes_back:
        return f"{statement} but {_adjective(rng, aspect, _opposite(mood), habits.detail)} ."
    return f"{statement} ."


def _adjective(rng: np.random.Generator, aspect: str, mood: Mood, detail: float) -> str:
    return _pick(rng, words.FAMILY_OF[aspect].details[mood] if rng.random() < detail else words.VAGUE[mood])


def _write_review(rng: np.random.Generator) -> str:
    task = _pick(rng, training_tasks())
    return f"{task.prompt} {write_answer(rng, task, PASSER_BY)}"


def _write_story(rng: np.random.Generator) -> str:
    """A verdict and aspects that share its mood: from such text a model learns which words do."""
    name, place = _pick(rng, words.NAMES), _pick(rng, tuple(words.PLACES))
    mood: Mood = _pick(rng, ("good", "bad"))
    statements = [_state(rng, _pick(rng, words.PLACES[place]), mood, PASSER_BY) for _ in range(2)]
    return " ".join([f"{name} visited the {place} and {_pick(rng, words.VERBS[mood])} it .", *statements])


def _opposite(mood: Mood) -> Mood:
    return "bad" if mood == "good" else "good"


def _pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    """Unlike `rng.choice`, this returns the option itself and not a numpy copy of it."""
    return options[int(rng.integers(len(options)))]
