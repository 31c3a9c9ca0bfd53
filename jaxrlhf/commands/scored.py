"""What rewards say of sampled answers: for `bestofn` and `evaluate`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from jaxrlhf.commands.sampled import batch_scorer
from jaxrlhf.commands.sampling import AnsweredBatch
from jaxrlhf.data.rowlog import Row
from jaxrlhf.models.config import ComputeConfig
from jaxrlhf.rewards.functions import RewardFn, call_rewards
from jaxrlhf.trainers.judges import Judges, refuse_nan

BatchScores = Callable[[AnsweredBatch], np.ndarray]
"""Scores [n, K] of the K answers to each of the n prompts of a batch."""


def make_scorer(judges: Judges, columns: Sequence[str], *, compute: ComputeConfig) -> BatchScores:
    """Builds the function that scores the answers of a batch.

    An answer's score is the weighted sum of the rewards that have an opinion on it, NaN where none has, as in training
    (`steps.experience.total_scores`). A Python reward is called with the whole batch, the answers to a prompt next to
    each other. The function raises ValueError where the reward model gives NaN or infinity.

    Args:
        judges: who scores answers.
        columns: names of the columns that the data have beside the prompt.
        compute: how the reward model is computed.
    """
    scored_by_model = None if judges.scorer is None else batch_scorer(judges.scorer, compute=compute)

    def score(batch: AnsweredBatch) -> np.ndarray:
        by_name = function_scores(judges.functions, batch.rows, batch.completions, columns)
        if scored_by_model is not None:
            by_name["reward_model"] = scored_by_model(batch)
            refuse_nan({"reward_model": by_name["reward_model"].ravel()})
        return weighted_total(by_name, judges.weights)

    return score


def function_scores(
    functions: Mapping[str, RewardFn],
    rows: Sequence[Row],
    completions: Sequence[Sequence[str]],
    columns: Sequence[str],
) -> dict[str, np.ndarray]:
    """Calls Python rewards once, on all answers.

    Args:
        functions: name -> function.
        rows: n prompts as `Index.extras` has them.
        completions: [n][K] answers to them.
        columns: names of the columns that the data have beside the prompt.

    Returns:
        Name of the reward -> its scores [n, K] float32, NaN where it has no opinion.

    Raises:
        ValueError: see `rewards.functions.call_rewards`.
    """
    owners = [row for row, texts in zip(rows, completions, strict=True) for _ in texts]
    prompts, texts = [row["prompt"] for row in owners], [text for texts in completions for text in texts]
    by_name = call_rewards(functions, prompts, texts, {name: [row.get(name) for row in owners] for name in columns})
    return {name: values.reshape(len(rows), -1) for name, values in by_name.items()}


def weighted_total(by_name: Mapping[str, np.ndarray], weights: Mapping[str, float]) -> np.ndarray:
    """Adds up what the rewards say of each answer, as `steps.experience.total_scores` does in training.

    Args:
        by_name: name of a reward -> its scores, all of one shape; NaN where it has no opinion.
        weights: of all these rewards by name. What weighs 0 has no opinion.

    Returns:
        Float64 of that shape, the weighted sum of the rewards that have an opinion; NaN where none has.
    """
    parts = np.stack([weights[name] * own.astype(np.float64) for name, own in by_name.items()])
    known = np.stack([~np.isnan(own) & (weights[name] != 0) for name, own in by_name.items()])
    return np.where(known.any(axis=0), np.sum(parts, axis=0, where=known), np.nan)
