"""Beside the table: reward along the way, what the reward model is still right about, and what is said more often."""

from __future__ import annotations

import collections
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.learning import stages
from benchmarks.learning.stages import Ground
from jaxrlhf.commands.sampled import Answered, answer_logprobs
from jaxrlhf.demo import road
from jaxrlhf.demo.judging import gold_scores, rewards
from jaxrlhf.evaluation.best_of_n import best_of_n, kl_bound, over_prompts
from jaxrlhf.evaluation.intervals import pair_accuracy

Points = dict[str, list[float]]
"""Name of a number -> its values along a curve."""

PAIRED = 4
"""Answers to each prompt whose pairs the reward model is asked about."""


def curve(run: Path) -> Points:
    """Reward model, gold and, where the method has a reference, KL to SFT along a run, on the held-out prompts."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    evaluations = [line for line in lines if "eval/rewards/gold/mean" in line]
    names = {
        "step": "step",
        "kl": "eval/objective/kl",
        "reward": "eval/rewards/reward_model/mean",
        "gold": "eval/rewards/gold/mean",
    }
    return {short: [line[name] for line in evaluations] for short, name in names.items() if name in evaluations[0]}


def best_of_n_curve(answered: Answered, scores: np.ndarray) -> Points:
    """Reward model, gold and the bound of the KL of best-of-n, n = 1, 2, ... up to the answers that there are."""
    counts = np.arange(1, scores.shape[1] + 1)
    gold = over_prompts(best_of_n(scores, gold_scores(answered)))
    reward = over_prompts(best_of_n(scores))
    return {
        "n": counts.tolist(),
        "kl": kl_bound(counts).tolist(),
        "reward": reward.values.tolist(),
        "gold": gold.values.tolist(),
    }


def over_optimisation(ground: Ground) -> list[dict[str, Any]]:
    """How often the reward model orders two fresh answers as gold does, at each checkpoint of the run without KL."""
    steps = [0, *stages.checkpoints(ground, stages.FREE)]
    return [_asked(ground, step) for step in steps]


def _asked(ground: Ground, step: int) -> dict[str, Any]:
    policy = stages.checkpoint(ground, stages.FREE, step) if step else ground.sft
    answered = road.sample(policy, ground.prompts, answers=PAIRED, seed=road.seed_of(ground.config, 8))
    logprobs, ref_logprobs = (
        answer_logprobs(model, answered, compute=road.compute(model)) for model in (policy, ground.sft)
    )
    gold, scores = gold_scores(answered), rewards(ground.scorer, answered)
    ranks = [np.unique(-row, return_inverse=True)[1] for row in gold]
    return {
        "step": step,
        "kl": float(np.mean(logprobs - ref_logprobs)),
        "gold": float(gold.mean()),
        "reward": float(scores.mean()),
        "accuracy": vars(pair_accuracy(list(scores), ranks)),
    }


def risen(before: Sequence[str], after: Sequence[str], size: int, most: int = 10) -> list[dict[str, Any]]:
    """The n-grams whose number per answer rose most.

    Args:
        before: answers of one policy.
        after: answers of another.
        size: n, words of an n-gram.
        most: how many to tell.
    """
    old, new = _count(before, size), _count(after, size)
    grams = sorted(new, key=lambda gram: old.get(gram, 0.0) - new[gram])[:most]
    return [{"words": " ".join(gram), "before": old.get(gram, 0.0), "after": new[gram]} for gram in grams]


def _count(answers: Sequence[str], size: int) -> dict[tuple[str, ...], float]:
    """N-grams -> occurrences per answer."""
    counts: collections.Counter[tuple[str, ...]] = collections.Counter()
    for answer in answers:
        words = answer.split()
        counts.update(zip(*(words[start:] for start in range(size)), strict=False))
    return {gram: count / len(answers) for gram, count in counts.items()}
