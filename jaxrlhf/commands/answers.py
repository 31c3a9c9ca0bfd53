"""Answers to a set of prompts, and what models say of them: for `generate`, `evaluate` and the demo."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxrlhf.data.config import DataConfig
from jaxrlhf.data.index import build_index
from jaxrlhf.data.loader import Loader
from jaxrlhf.data.sources import Source
from jaxrlhf.generation.sampler import make_sampler
from jaxrlhf.models.config import ComputeConfig
from jaxrlhf.models.decoder import make_model, unstack_layers
from jaxrlhf.sharding.place import place_batch, process_rows, to_host
from jaxrlhf.steps.rollout import response_batch, scorer_batch
from jaxrlhf.steps.scoring import sequence_logprobs, sequence_scores, token_logprobs
from jaxrlhf.trainers.start import Start
from jaxrlhf.types import PromptBatch, Samples


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompts:
    """A set of prompts, encoded.

    Attributes:
        loader: batches of them.
        mesh: where batches go.
    """

    loader: Loader
    mesh: Mesh

    @property
    def texts(self) -> list[Any]:
        """The prompts as text."""
        return [extra["prompt"] for extra in self.loader.index.extras]

    @property
    def columns(self) -> list[dict[str, Any]]:
        """The columns of each prompt's row besides the prompt."""
        return [{k: v for k, v in extra.items() if k != "prompt"} for extra in self.loader.index.extras]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answered:
    """K answers to each of N prompts.

    Attributes:
        prompts: the prompts.
        completions: [N][K] answers as text, special tokens left out.
        lengths: [N, K] tokens drawn, the end-of-sequence token among them.
        terminated: [N, K] bool, whether the answer ended by itself.
        batches: prompts and answers on the mesh, one prompt row for each answer.
    """

    prompts: Prompts
    completions: list[list[str]]
    lengths: np.ndarray
    terminated: np.ndarray
    batches: list[tuple[PromptBatch, Samples]]


def encode_prompts(
    sources: Sequence[Source], tokenizer: Any, data: DataConfig, mesh: Mesh, *, batch_size: int
) -> Prompts:
    """Reads and encodes prompts, in their order."""
    index = build_index("prompt", sources, tokenizer, data)
    rows = process_rows(mesh, batch_size)
    return Prompts(loader=Loader(index, "prompts", batch_size, 0, rows=rows), mesh=mesh)


def sample_answers(
    policy: Start,
    prompts: Prompts,
    *,
    compute: ComputeConfig,
    max_new_tokens: int,
    answers: int = 1,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
) -> Answered:
    """Samples `answers` answers to each prompt; an answer depends on the seed, the prompt's number and its own number.

    Args:
        policy: the policy.
        prompts: N prompts.
        compute: how the model is computed.
        max_new_tokens: tokens of the longest answer.
        answers: K.
        temperature: divides the logits; 0 takes the most likely token.
        top_k: draws among the k most likely tokens; 0 means all.
        top_p: draws among the fewest tokens whose probability reaches p.
        seed: of the draws.
    """
    sample = make_sampler(
        make_model(policy.config, compute),
        eos_ids=policy.eos_ids,
        max_new_tokens=max_new_tokens,
        answers=answers,
        prepare=unstack_layers,
    )
    key = jax.random.key(seed)
    batches, hosted = [], []
    for batch in prompts.loader.eval_batches():
        placed = place_batch(batch, prompts.mesh)
        drawn = sample(policy.params, placed, key, temperature=temperature, top_k=top_k, top_p=top_p)
        repeated = jax.tree.map(lambda leaf: leaf.repeat(answers, axis=0), placed)
        batches.append((repeated, drawn))
        hosted.append(to_host((drawn.tokens, drawn.mask, drawn.terminated)))
    count = prompts.loader.index.units
    tokens, mask, terminated = (np.concatenate(part)[: count * answers] for part in zip(*hosted, strict=True))
    texts = policy.tokenizer.batch_decode(
        [row[keep] for row, keep in zip(tokens, mask, strict=True)], skip_special_tokens=True
    )
    return Answered(
        prompts=prompts,
        completions=[texts[i : i + answers] for i in range(0, len(texts), answers)],
        lengths=mask.sum(axis=1).reshape(count, answers),
        terminated=terminated.reshape(count, answers),
        batches=batches,
    )


def score_answers(scorer: Start, answered: Answered, *, compute: ComputeConfig) -> np.ndarray:
    """Scores [N, K] of answers under a reward model that shares the policy's tokens."""
    model = make_model(scorer.config, compute)
    run = jax.jit(lambda params, prompts, drawn: sequence_scores(model, params, scorer_batch(prompts, drawn)))
    return _each(answered, lambda prompts, drawn: run(scorer.params, prompts, drawn))


def answer_logprobs(policy: Start, answered: Answered, *, compute: ComputeConfig) -> np.ndarray:
    """Log-probabilities [N, K] of answers under a policy, summed over their tokens."""
    model = make_model(policy.config, compute)

    @jax.jit
    def run(params: Any, prompts: PromptBatch, drawn: Samples) -> jax.Array:
        out, mask = token_logprobs(model, params, response_batch(prompts, drawn))
        assert out.logp is not None
        return sequence_logprobs(out.logp, mask)

    return _each(answered, lambda prompts, drawn: run(policy.params, prompts, drawn))


def _each(answered: Answered, score: Any) -> np.ndarray:
    values = np.concatenate([to_host(score(prompts, drawn)) for prompts, drawn in answered.batches])
    count, answers = answered.lengths.shape
    return values[: count * answers].reshape(count, answers)
