"""Python rewards of sampled answers: each process decodes and scores its own rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxrlhf.data.encoder import answer_texts
from jaxrlhf.data.index import Index
from jaxrlhf.rewards.functions import RewardFn, call_rewards
from jaxrlhf.sharding.place import local_rows, place_batch
from jaxrlhf.types import Samples


@dataclasses.dataclass(frozen=True)
class Answers:
    """The answers of this process's rows, padding rows left out.

    Attributes:
        rows: total number of rows, padding among them.
        real: the numbers of the rows that are no padding.
        prompts: of the real rows, as text; conversations as the chat template renders them.
        completions: of the real rows, text without special tokens.
        columns: the other columns of the data, one value a real row.
    """

    rows: int
    real: np.ndarray
    prompts: list[Any]
    completions: list[str]
    columns: dict[str, list[Any]]

    def scores(self, rewards: Mapping[str, RewardFn], mesh: Mesh) -> dict[str, jax.Array]:
        """What Python rewards say, as global arrays [B]; NaN at padding and where a reward has no opinion."""
        if self.completions:
            by_name = call_rewards(rewards, self.prompts, self.completions, self.columns)
        else:  # this process holds padding alone
            by_name = {name: np.zeros(0, np.float32) for name in rewards}
        return {name: place_batch(self._spread(values), mesh) for name, values in by_name.items()}

    def rows_to_show(self, scores: Mapping[str, jax.Array], most: int = 8) -> list[dict[str, Any]]:
        """The first rows with their scores, as lines of samples.jsonl; null where a reward has no opinion."""
        local = {name: local_rows(values) for name, values in scores.items()}
        return [
            {
                "prompt": self.prompts[number],
                "completion": self.completions[number],
                "scores": {name: float(own[row]) if np.isfinite(own[row]) else None for name, own in local.items()},
            }
            for number, row in enumerate(self.real[:most])
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
        columns={name: [extra.get(name) for extra in extras] for name in index.columns},
    )
