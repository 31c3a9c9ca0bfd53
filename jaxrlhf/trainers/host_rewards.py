"""Sampled answers on the host: each process decodes, scores and shows its own rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxrlhf.data.encoder import answer_texts
from jaxrlhf.data.index import Index
from jaxrlhf.rewards.functions import RewardFn, call_rewards
from jaxrlhf.sharding.place import local_rows, place_batch
from jaxrlhf.types import Samples

SHOWN = 8
"""The rows of a batch that are shown before the best and the worst, and the held-out prompts that are."""


@dataclasses.dataclass(frozen=True)
class Answers:
    """The answers of this process's rows, padding rows left out.

    Attributes:
        rows: total number of rows, padding among them.
        real: the numbers of the rows that are no padding.
        prompts: of the real rows, as text; conversations as the chat template renders them.
        completions: of the real rows, text without special tokens.
        terminated: [real rows] bool, whether the answer ended by itself and was not cut off.
        columns: the other columns of the data, one value a real row.
    """

    rows: int
    real: np.ndarray
    prompts: list[Any]
    completions: list[str]
    terminated: np.ndarray
    columns: dict[str, list[Any]]

    def scores(self, rewards: Mapping[str, RewardFn], mesh: Mesh) -> dict[str, jax.Array]:
        """What Python rewards say, as global arrays [B]; NaN at padding and where a reward has no opinion."""
        if self.completions:
            by_name = call_rewards(rewards, self.prompts, self.completions, self.columns)
        else:  # this process holds padding alone
            by_name = {name: np.zeros(0, np.float32) for name in rewards}
        return {name: place_batch(self._spread(values), mesh) for name, values in by_name.items()}

    def rows_to_show(self, scores: Mapping[str, jax.Array], totals: jax.Array) -> list[dict[str, Any]]:
        """The first rows of a training batch, then the best and the worst one, as lines of samples.jsonl.

        Args:
            scores: name of a reward -> [B], NaN where it has no opinion.
            totals: [B], the weighted sum of the scores, NaN where there is none.
        """
        picks = [("first", number) for number in range(min(SHOWN, len(self.real)))]
        own = local_rows(totals)[self.real]
        if np.isfinite(own).any():
            picks += [("best", int(np.nanargmax(own))), ("worst", int(np.nanargmin(own)))]
        return self._lines("train", picks, scores, totals)

    def prompts_to_show(self, scores: Mapping[str, jax.Array], totals: jax.Array, answers: int) -> list[dict[str, Any]]:
        """One answer to each of the first prompts of an evaluation batch, as lines of samples.jsonl.

        Args:
            scores: name of a reward -> [B], NaN where it has no opinion.
            totals: [B], the weighted sum of the scores, NaN where there is none.
            answers: answers to each prompt.
        """
        firsts = range(0, len(self.real), answers)[:SHOWN]
        return self._lines("eval", (("first", number) for number in firsts), scores, totals)

    def _lines(
        self,
        split: str,
        picks: Iterable[tuple[str, int]],
        scores: Mapping[str, jax.Array],
        totals: jax.Array,
    ) -> list[dict[str, Any]]:
        own = {name: local_rows(values)[self.real] for name, values in scores.items()}
        total = local_rows(totals)[self.real]
        return [
            {
                "split": split,
                "pick": pick,
                "prompt": self.prompts[number],
                "completion": self.completions[number],
                "terminated": bool(self.terminated[number]),
                "score": _or_none(total[number]),
                "scores": {name: _or_none(values[number]) for name, values in own.items()},
            }
            for pick, number in picks
        ]

    def _spread(self, values: np.ndarray) -> np.ndarray:
        spread = np.full(self.rows, np.nan, np.float32)
        spread[self.real] = values
        return spread


def read_answers(samples: Samples, index: Index, examples: np.ndarray, answers: int, tokenizer: Any) -> Answers:
    """Decodes the answers that this process's devices hold.

    Args:
        samples: of the whole batch.
        index: of the prompts.
        examples: numbers of this process's prompts in the index, -1 at padding.
        answers: answers to each prompt.
        tokenizer: to decode with.
    """
    tokens, mask, terminated = map(local_rows, (samples.tokens, samples.mask, samples.terminated))
    owners = np.repeat(examples, answers)
    real = np.flatnonzero(owners >= 0)
    extras = [index.extras[owner] for owner in owners[real]]
    texts = answer_texts(tokenizer, tokens[real], mask[real].sum(axis=1), terminated[real])
    return Answers(
        rows=len(owners),
        real=real,
        prompts=[extra["prompt"] for extra in extras],
        completions=texts,
        terminated=terminated[real],
        columns={name: [extra.get(name) for extra in extras] for name in index.columns},
    )


def _or_none(score: np.floating) -> float | None:
    return float(score) if np.isfinite(score) else None
