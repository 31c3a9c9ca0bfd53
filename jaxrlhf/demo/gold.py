"""The gold preference of the toy language, and the noisy labeller who ranks by it. `language.py` explains the language.

Gold stands for what people want. Training never sees it: it sees rankings by a labeller who errs, and gold is kept to
judge what training made of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxrlhf.demo import words
from jaxrlhf.demo.language import parse_prompt
from jaxrlhf.demo.words import Mood

POINTS = {
    "topic": 1.0,  # for each aspect asked for that is described
    "mood": 0.6,  # for each of these in the mood of the prompt; taken away in the other mood
    "detail": 1.2,  # for each of these with a concrete word
    "reason": 1.1,  # for each of these with a reason that fits the aspect and the mood of its statement
    "closing": 0.8,  # for ending on a closing
    "aside": -0.9,  # for each sentence of chatter or about an aspect that was not asked for
    "repeat": -1.0,  # for each sentence on what was said already, a second closing too
    "contradiction": -1.0,  # for each aspect both praised and damned
    "stray": -0.3,  # for each word outside of the grammar, as in an unfinished sentence
}
"""Part of the score -> points. They differ so that answers with different merits seldom tie."""

LABEL_NOISE = 0.8
"""Default noise of the labeller: gold itself then orders about 86 % of ranked pairs of demonstrations rightly."""


class Statement(NamedTuple):
    """The sentence `the {aspect} was {word} ...`, understood.

    Attributes:
        aspect: what it is about.
        moods: of its word, and of the word after "but" where there is one.
        concrete: whether the first word is more than vague.
        fitting_reason: whether it gives a reason that goes with aspect and mood.
    """

    aspect: str
    moods: tuple[Mood, ...]
    concrete: bool
    fitting_reason: bool


def gold_score(prompt: str, completion: str) -> float:
    """Scores an answer: the sum of the parts that `explain` lists. The best answer has 8.6, an empty one 0.

    Args:
        prompt: a prompt of the language.
        completion: any text; what is not of the language costs points and is never an error.

    Returns:
        The score, unbounded below.

    Raises:
        ValueError: if `prompt` is not a prompt of the language.
    """
    return round(sum(explain(prompt, completion).values()), 6)


def explain(prompt: str, completion: str) -> dict[str, float]:
    """Lists the parts of an answer's gold score.

    Args:
        prompt: a prompt of the language.
        completion: any text.

    Returns:
        Part -> points earned or lost, in the order of `POINTS`.

    Raises:
        ValueError: if `prompt` is not a prompt of the language.
    """
    task = parse_prompt(prompt)
    sentences = _split(completion)
    meanings = [_understand(sentence) for sentence in sentences]
    statements = [meaning for meaning in meanings if meaning is not None]
    chatter = [sentence for sentence in sentences if sentence in words.CHATTER]
    closings = [sentence for sentence in sentences if sentence in words.CLOSINGS]
    strays = [
        sentence
        for sentence, meaning in zip(sentences, meanings, strict=True)
        if meaning is None and sentence not in (*chatter, *closings)
    ]

    # What counts is the first statement on an aspect: saying it again, and better, does not mend it.
    first = {statement.aspect: statement for statement in reversed(statements)}
    answers = [first[aspect] for aspect in task.aspects if aspect in first]
    counts = {
        "topic": len(answers),
        "mood": sum(1 if answer.moods[0] == task.mood else -1 for answer in answers),
        "detail": sum(answer.concrete for answer in answers),
        "reason": sum(answer.fitting_reason for answer in answers),
        "closing": sum(sentence in words.CLOSINGS for sentence in sentences[-1:]),
        "aside": len(chatter) + sum(statement.aspect not in task.aspects for statement in statements),
        "repeat": len(statements) - len(first) + len(chatter) - len(set(chatter)) + max(len(closings) - 1, 0),
        "contradiction": len(
            {said.aspect for said in statements if any(mood != first[said.aspect].moods[0] for mood in said.moods)}
        ),
        "stray": sum(len(sentence) for sentence in strays),
    }
    return {part: round(points * counts[part], 6) for part, points in POINTS.items()}


def rank_with_noise(scores: Sequence[float], rng: np.random.Generator, noise: float = LABEL_NOISE) -> list[int]:
    """Ranks answers as a labeller who errs.

    The labeller feels `score + noise * Gumbel` of each answer, so orders are draws of Plackett-Luce (pairs: of
    Bradley-Terry) with utilities `score / noise`, the model that reward losses assume. Feelings are then rounded to
    whole grades, and equal grades tie. Grades that are all equal would say nothing: then the feelings decide.

    Args:
        scores: K gold scores, K at least 2.
        rng: source of the noise; it is advanced.
        noise: scale of the noise in points, at least 0.

    Returns:
        K ranks: 1 is best, equal ranks are ties, and no rank is left out.

    Raises:
        ValueError: if there are fewer than two scores, one is not finite, or `noise` is negative or not finite.
    """
    if len(scores) < 2 or not np.isfinite(scores).all():
        raise ValueError(f"scores={list(scores)} cannot be ranked; expected at least two finite numbers.")
    if not 0 <= noise < np.inf:
        raise ValueError(f"noise={noise} is not a scale; expected a finite number of at least 0.")
    feelings = np.asarray(scores) + noise * rng.gumbel(size=len(scores))
    grades = np.rint(feelings)
    if np.ptp(grades) == 0:
        grades = feelings
    return (1 + np.unique(-grades, return_inverse=True)[1]).tolist()


def pair_accuracy(scores: Sequence[Sequence[float]], ranks: Sequence[Sequence[int]]) -> float:
    """Share of ranked pairs that scores put in the same order. With gold scores it is the best that anyone can reach.

    Labels are noisy, so nothing agrees with all of them: a reward model is measured against what gold reaches on the
    same pairs.

    Args:
        scores: for each prompt, K scores by gold, a reward model or any other rule; K may vary.
        ranks: for each prompt, the K ranks of the same answers, 1 is best.

    Returns:
        A number in [0, 1]. Pairs whose ranks tie are left out, pairs whose scores tie count one half.

    Raises:
        ValueError: if scores and ranks differ in length, or no pair is ranked.
    """
    agreements = []
    for group_scores, group_ranks in zip(scores, ranks, strict=True):
        for (score_a, rank_a), (score_b, rank_b) in itertools.combinations(
            zip(group_scores, group_ranks, strict=True), 2
        ):
            if rank_a != rank_b:
                agreements.append(0.5 if score_a == score_b else float((score_a > score_b) == (rank_a < rank_b)))
    if not agreements:
        raise ValueError("there is no pair with different ranks, so there is no accuracy; rank more answers.")
    return sum(agreements) / len(agreements)


def _split(completion: str) -> list[tuple[str, ...]]:
    """Cuts behind each "." and "!"; what follows the last one is an unfinished sentence of its own."""
    sentences: list[tuple[str, ...]] = []
    current: list[str] = []
    for word in completion.split():
        current.append(word)
        if word in (".", "!"):
            sentences.append(tuple(current))
            current = []
    return [*sentences, tuple(current)] if current else sentences


def _understand(sentence: tuple[str, ...]) -> Statement | None:
    """Returns None where the sentence is no statement, or its adjectives do not go with its aspect."""
    match sentence:
        case ("the", aspect, "was", word, "."):
            adjectives, reason = (word,), None
        case ("the", aspect, "was", word, "but", other, "."):
            adjectives, reason = (word, other), None
        case ("the", aspect, "was", word, "because", noun, verb, "."):
            adjectives, reason = (word,), (noun, verb)
        case _:
            return None
    if aspect not in words.FAMILY_OF:
        return None
    moods: tuple[Mood, ...] = tuple(mood for word in adjectives if (mood := _mood_of(word, aspect)) is not None)
    if len(moods) < len(adjectives):
        return None
    return Statement(
        aspect=aspect,
        moods=moods,
        concrete=adjectives[0] not in words.VAGUE_MOOD,
        fitting_reason=reason in words.FAMILY_OF[aspect].reasons[moods[0]],
    )


def _mood_of(word: str, aspect: str) -> Mood | None:
    """Returns None where the word cannot be said of the aspect."""
    if word in words.VAGUE_MOOD:
        return words.VAGUE_MOOD[word]
    details = words.FAMILY_OF[aspect].details
    return next((mood for mood in details if word in details[mood]), None)
