"""Answers to a set of prompts, and what models say of them: for `generate`, `bestofn`, `evaluate` and the demo."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxrlhf.commands.config import BestOfNConfig, GenerateConfig, SamplingConfig
from jaxrlhf.commands.files import write_rows
from jaxrlhf.commands.progress import AnswerProgress
from jaxrlhf.commands.sampling import AnsweredBatch, Watch, make_answer
from jaxrlhf.data.config import DataConfig, DatasetConfig
from jaxrlhf.data.index import Index
from jaxrlhf.data.indexing import build_index
from jaxrlhf.data.loader import Loader
from jaxrlhf.data.rowlog import Row
from jaxrlhf.data.sources import Source
from jaxrlhf.models.attention import check_attention
from jaxrlhf.models.config import ComputeConfig
from jaxrlhf.models.decoder import make_model
from jaxrlhf.sharding.distributed import initialize, is_main
from jaxrlhf.sharding.mesh import check_batch, open_mesh
from jaxrlhf.sharding.place import place_batch, process_rows, to_host
from jaxrlhf.steps.responses import response_batch, scorer_batch
from jaxrlhf.steps.scoring import sequence_logprobs, sequence_scores, token_logprobs
from jaxrlhf.trainers.start import Start, check_positions, load_start
from jaxrlhf.types import PromptBatch, Samples

log = logging.getLogger(__name__)

_SHORTEN = "lower sampling.max_new_tokens or data.max_prompt_length"


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
    def texts(self) -> list[str]:
        """The prompts as text; conversations as the chat template renders them."""
        return [extra["prompt"] for extra in self.loader.index.extras]

    @property
    def count(self) -> int:
        """Number of prompts, N."""
        return self.loader.index.units

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt."""
        return self.loader.index.report.longest


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answered:
    """K answers to each of N prompts, and the batches they were drawn in.

    Attributes:
        prompts: the prompts.
        batches: all of them, in the order of the prompts.
    """

    prompts: Prompts
    batches: list[AnsweredBatch]

    @property
    def completions(self) -> list[list[str]]:
        """[N][K] answers as text, without special tokens."""
        return [texts for batch in self.batches for texts in batch.completions]

    @property
    def lengths(self) -> np.ndarray:
        """[N, K] tokens drawn, the end-of-sequence token among them."""
        return np.concatenate([batch.lengths for batch in self.batches])


@contextlib.contextmanager
def open_prompts(config: GenerateConfig | BestOfNConfig) -> Iterator[tuple[Start, Prompts]]:
    """Sets the mesh that a command asks for, and loads its policy and its prompts.

    Raises:
        ValueError: if batches do not divide over the devices, these cannot have the attention that is asked for, or
            what is read is bad.
    """
    initialize()
    mesh = open_mesh(config.mesh)
    check_batch(mesh, "batch_size", config.batch_size)
    check_attention(mesh, config.compute)
    with jax.set_mesh(mesh):
        policy = load_start(config.model, mesh)
        source = DatasetConfig(path=config.dataset)
        prompts = encode_prompts([source], policy.tokenizer, config.data, mesh, batch_size=config.batch_size)
        log_report(prompts.loader.index)
        yield policy, prompts


def write_sampled(path: str, rows: Iterable[Row]) -> None:
    """Writes rows that are made of answers while they are drawn, which the devices of all processes take part in."""
    if is_main():
        write_rows(Path(path), rows)
    else:
        collections.deque(rows, maxlen=0)


def encode_prompts(
    sources: Sequence[Source], tokenizer: Any, data: DataConfig, mesh: Mesh, *, batch_size: int
) -> Prompts:
    """Reads and encodes prompts, in their order."""
    index = build_index("prompt", sources, tokenizer, data)
    rows = process_rows(mesh, batch_size)
    return Prompts(loader=Loader(index, "prompts", batch_size, 0, rows=rows, buckets=data.buckets), mesh=mesh)


def log_report(index: Index) -> None:
    """Logs what was read of a data set, and what was left out."""
    for line in index.report.lines():
        log.info("%s", line)


def sample_batches(
    policy: Start,
    prompts: Prompts,
    sampling: SamplingConfig,
    *,
    compute: ComputeConfig,
    answers: int = 1,
    watch: Watch | None = None,
) -> Iterator[AnsweredBatch]:
    """Samples answers to each prompt, and yields them batch by batch, in the order of the prompts.

    An answer depends on the seed, the prompt's number and its own number, not on its neighbours.

    Args:
        policy: the policy.
        prompts: N prompts.
        sampling: how answers are drawn.
        compute: how the model is computed.
        answers: K, answers to each prompt.
        watch: sees the answers of a batch while they are drawn.

    Raises:
        ValueError: if the longest prompt and its answer have more tokens than the policy has positions, or a forbidden
            token is none.
    """
    check_positions(policy, prompts.longest + sampling.max_new_tokens, _SHORTEN)
    answer = make_answer(policy, sampling, compute=compute, answers=answers)
    key = jax.random.key(sampling.seed)
    size, rows = prompts.loader.batch_size, prompts.loader.index.extras
    for number, batch in enumerate(prompts.loader.eval_batches()):
        own = rows[number * size : (number + 1) * size]
        yield answer(place_batch(batch, prompts.mesh), own, key, watch=watch)


def draw_answers(config: GenerateConfig | BestOfNConfig, policy: Start, prompts: Prompts) -> Iterator[AnsweredBatch]:
    """Samples the answers that a command asks for, as `sample_batches`, and shows how far it is."""
    progress = AnswerProgress(prompts.count * config.answers)
    batches = sample_batches(
        policy, prompts, config.sampling, compute=config.compute, answers=config.answers, watch=progress.watch
    )
    return progress.follow(batches)


def sample_answers(
    policy: Start, prompts: Prompts, sampling: SamplingConfig, *, compute: ComputeConfig, answers: int = 1
) -> Answered:
    """Samples answers to each prompt, as `sample_batches`, and keeps them all."""
    batches = sample_batches(policy, prompts, sampling, compute=compute, answers=answers)
    return Answered(prompts=prompts, batches=list(batches))


def score_answers(scorer: Start, answered: Answered, *, compute: ComputeConfig) -> np.ndarray:
    """Scores [N, K] of answers under a reward model that shares the policy's tokens.

    Raises:
        ValueError: if the longest prompt and its answer have more tokens than the reward model has positions.
    """
    check_positions(scorer, answered.prompts.longest + int(answered.lengths.max()), _SHORTEN)
    score = batch_scorer(scorer, compute=compute)
    return np.concatenate([score(batch) for batch in answered.batches])


def batch_scorer(scorer: Start, *, compute: ComputeConfig) -> Callable[[AnsweredBatch], np.ndarray]:
    """Builds the function that gives the scores [n, K] of a batch's answers under a reward model."""
    model = make_model(scorer.config, compute)
    run = jax.jit(lambda params, prompts, drawn: sequence_scores(model, params, scorer_batch(prompts, drawn)))
    return lambda batch: _real(batch, run(scorer.params, batch.prompts, batch.samples))


def answer_logprobs(policy: Start, answered: Answered, *, compute: ComputeConfig) -> np.ndarray:
    """Log-probabilities [N, K] of answers under a policy, summed over their tokens."""
    model = make_model(policy.config, compute)

    @jax.jit
    def run(params: Any, prompts: PromptBatch, drawn: Samples) -> jax.Array:
        out, mask = token_logprobs(model, params, response_batch(prompts, drawn))
        assert out.logp is not None
        return sequence_logprobs(out.logp, mask)

    parts = [_real(batch, run(policy.params, batch.prompts, batch.samples)) for batch in answered.batches]
    return np.concatenate(parts)


def _real(batch: AnsweredBatch, values: jax.Array) -> np.ndarray:
    """[n, K] of the values of all rows on the mesh."""
    return to_host(values)[: batch.lengths.size].reshape(batch.lengths.shape)
