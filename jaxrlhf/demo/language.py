"""A toy language of guest reviews, small enough that a tiny model learns it and a person can judge it by eye.

It is a toy. It stands in for people and their texts so that the whole way, from pretraining to PPO, runs in minutes
on a laptop with nothing downloaded. What holds here need not hold for real models and real preferences.

A prompt names a guest, whether they liked the place, and the two aspects that a review should speak about:

    mia liked the hotel . describe the room and staff :

An answer is a few sentences out of three kinds:

    a statement   the room was spotless .          about an aspect; the word is concrete, or vague (nice, bad)
      a reason    the room was spotless because maids scrubbed .
      taken back  the room was spotless but dirty .
    chatter       it rained outside .              beside the point
    a closing     thanks !

The gold score (`gold.py`) is a sum of parts that a reader can check one by one. For the prompt above:

    8.6  the room was spotless because maids scrubbed . the staff was helpful because everyone smiled . thanks !
    3.5  the room was nice . it rained outside . the staff was helpful .
   -0.6  the room was bad . my phone rang . the coffee was fresh because spices mingled . thanks !
    0.0  (an empty answer)

In the first line every part is earned, and no answer scores more. The second leaves out reasons and closing, is vague
about the room and talks of the weather. The third damns the room of a guest who was pleased, and speaks of coffee that
nobody asked about. Text outside of the grammar loses points for every word.

The demonstrations (`texts.py`) are written as people write: about what was asked, and with each other good habit kept
some of the time, independently of the rest, so the scores of answers that imitate them spread over several parts and
leave much to gain. One temptation is left in: the reasons in the demonstrations always fit the aspect and the mood, and
repetition is rare. A reward model learns little about misfits and repeats, gold minds both, and a policy held by no KL
penalty may find out.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools

import numpy as np

from jaxrlhf.demo import words
from jaxrlhf.demo.config import HELD_OUT_PROMPTS
from jaxrlhf.demo.words import Mood


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """What a prompt asks for.

    Attributes:
        name: the guest, who does not matter to the score.
        verb: one of `words.VERBS`, which gives the mood.
        place: a key of `words.PLACES`.
        aspects: the two different aspects of the place that a review should speak about.
    """

    name: str
    verb: str
    place: str
    aspects: tuple[str, str]

    @property
    def mood(self) -> Mood:
        """The mood that the review should have."""
        return words.MOOD_OF_VERB[self.verb]

    @property
    def prompt(self) -> str:
        """The task in words."""
        first, second = self.aspects
        return f"{self.name} {self.verb} the {self.place} . describe the {first} and {second} :"


@functools.cache
def training_tasks() -> tuple[Task, ...]:
    """Returns all 21760 tasks on the training side of the split, in a fixed order."""
    return tuple(task for core in _shuffled_cores()[HELD_OUT_PROMPTS:] for task in _variants(core))


def make_prompts(seed: int, count: int) -> list[str]:
    """Draws different prompts from the training side of the split.

    Args:
        seed: the draw is a function of it.
        count: how many, from 1 to 21760.

    Returns:
        `count` different prompts, none of which shares verb, place and aspects with a held-out one.

    Raises:
        ValueError: if there are not that many prompts.
    """
    tasks = training_tasks()
    if not 1 <= count <= len(tasks):
        raise ValueError(f"count={count} prompts were asked for; the language has {len(tasks)} for training.")
    chosen = np.random.default_rng(seed).choice(len(tasks), size=count, replace=False)
    return [tasks[index].prompt for index in chosen]


def held_out_prompts() -> list[str]:
    """Returns the 256 prompts for evaluation, which are always the same; no other function here makes any of them."""
    held_out = [_variants(core) for core in _shuffled_cores()[:HELD_OUT_PROMPTS]]
    return [variants[index % len(variants)].prompt for index, variants in enumerate(held_out)]


def parse_prompt(prompt: str) -> Task:
    """Reads a prompt back.

    Args:
        prompt: a prompt of the language; the amount of white space does not matter.

    Returns:
        The task with this prompt.

    Raises:
        ValueError: if it is not a prompt of the language.
    """
    match prompt.split():
        case [name, verb, "the", place, ".", "describe", "the", first, "and", second, ":"] if (
            name in words.NAMES
            and verb in words.MOOD_OF_VERB
            and first != second
            and {first, second} <= set(words.PLACES.get(place, ()))
        ):
            return Task(name=name, verb=verb, place=place, aspects=(first, second))
    raise ValueError(
        f"prompt {prompt[:80]!r} is not of the toy language; expected one from make_prompts or held_out_prompts, "
        "such as 'mia liked the hotel . describe the room and staff :'"
    )


def _variants(core: tuple[str, str, tuple[str, str]]) -> list[Task]:
    """All tasks with this verb, place and pair of aspects: every guest, both orders."""
    verb, place, (first, second) = core
    return [
        Task(name=name, verb=verb, place=place, aspects=aspects)
        for name in words.NAMES
        for aspects in ((first, second), (second, first))
    ]


@functools.cache
def _shuffled_cores() -> list[tuple[str, str, tuple[str, str]]]:
    """Verb, place and unordered pair of aspects. The split is made here, so that no variant falls on the other side."""
    cores = [
        (verb, place, pair)
        for verb in words.MOOD_OF_VERB
        for place, aspects in words.PLACES.items()
        for pair in itertools.combinations(aspects, 2)
    ]
    return [cores[index] for index in np.random.default_rng(0).permutation(len(cores))]
