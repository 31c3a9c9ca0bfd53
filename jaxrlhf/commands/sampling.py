"""From the options of `sampling.` to answers with their texts: the one place where commands make a sampler."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import numpy as np

from jaxrlhf.commands.config import SamplingConfig
from jaxrlhf.data.config import DataConfig
from jaxrlhf.data.encoder import answer_decoder, answer_texts, make_encoder, token_named
from jaxrlhf.data.rowlog import Row
from jaxrlhf.generation.sampler import Listener, Sampler
from jaxrlhf.generation.settings import SamplingSettings
from jaxrlhf.generation.stopping import before_stop, stop_at
from jaxrlhf.models.config import ComputeConfig
from jaxrlhf.models.decoder import make_model
from jaxrlhf.sharding.place import to_host
from jaxrlhf.trainers.start import Start
from jaxrlhf.types import PromptBatch, Samples

Watch = Callable[[int, np.ndarray, bool], None]
"""(row of an answer, its tokens so far but the end-of-sequence token, whether it has ended), between two chunks."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnsweredBatch:
    """K answers to each of the n prompts of a batch, padding rows left out but for those on the mesh.

    Attributes:
        rows: [n] the prompts as `Index.extras` has them.
        completions: [n][K] answers as text, without special tokens, and up to a stop string.
        lengths: [n, K] tokens drawn, among them the end-of-sequence token or what completes a stop string.
        terminated: [n, K] bool, whether the answer ended by itself.
        prompts: the prompts on the mesh, one row for each answer.
        samples: the answers on the mesh.
    """

    rows: Sequence[Row]
    completions: list[list[str]]
    lengths: np.ndarray
    terminated: np.ndarray
    prompts: PromptBatch
    samples: Samples


class AnswerFn(Protocol):
    """What `make_answer` returns."""

    def __call__(
        self,
        prompts: PromptBatch,
        rows: Sequence[Row],
        key: jax.Array,
        *,
        longest: int | None = None,
        watch: Watch | None = None,
    ) -> AnsweredBatch:
        """Answers prompts on the mesh, which begin with those of `rows`; `longest` takes the place of max_new_tokens.

        `key` is consumed.
        """
        ...


def make_answer(policy: Start, sampling: SamplingConfig, *, compute: ComputeConfig, answers: int = 1) -> AnswerFn:
    """Builds the function that answers batches of prompts.

    Args:
        policy: the policy.
        sampling: how answers are drawn.
        compute: how the model is computed.
        answers: K, answers to each prompt.

    Raises:
        ValueError: if the policy's tokenizer does not know a forbidden token.
    """
    settings = _settings(policy, sampling)
    sampler = Sampler(
        make_model(policy.config, compute),
        max_new_tokens=sampling.max_new_tokens,
        answers=answers,
        slots=sampling.slots,
        chunk=sampling.chunk,
        prefill_chunk=sampling.prefill_chunk,
        draw=sampling.draw,
    )

    params = sampler.prepare(policy.params)

    def answer(
        prompts: PromptBatch,
        rows: Sequence[Row],
        key: jax.Array,
        *,
        longest: int | None = None,
        watch: Watch | None = None,
    ) -> AnsweredBatch:
        longest = sampling.max_new_tokens if longest is None else longest
        own = dataclasses.replace(
            settings, max_new_tokens=longest, min_new_tokens=min(longest, sampling.min_new_tokens)
        )
        listen = _listener(policy, sampling.stop, longest, watch)
        samples = sampler(params, prompts, key, own, listen=listen)
        repeated = jax.tree.map(lambda leaf: leaf.repeat(answers, axis=0), prompts)
        return _read(repeated, samples, policy, rows, answers, sampling.stop)

    return answer


def _settings(policy: Start, sampling: SamplingConfig) -> SamplingSettings:
    forbidden = []
    if sampling.forbidden:
        encoder = make_encoder(policy.tokenizer, DataConfig(add_eos=False))
        forbidden = [_forbidden_id(encoder, text) for text in sampling.forbidden]
    return SamplingSettings(
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        min_p=sampling.min_p,
        repetition_penalty=sampling.repetition_penalty,
        eos_ids=policy.eos_ids,
        forbidden_ids=forbidden,
    )


def _forbidden_id(encoder: Any, text: str) -> int:
    try:
        return token_named(encoder, text)
    except ValueError as error:
        raise ValueError(f"sampling.forbidden: {error}") from error


def _listener(policy: Start, stop: Sequence[str], longest: int, watch: Watch | None) -> Listener | None:
    """What ends answers at stop strings, and shows them to `watch`; None if there is neither."""
    find_end = stop_at(stop, answer_decoder(policy.tokenizer)) if stop else None
    if watch is None:
        return find_end

    def listen(row: int, tokens: np.ndarray) -> int | None:
        keep = None if find_end is None else find_end(row, tokens)
        if keep is not None:
            watch(row, tokens[:keep], True)
        elif tokens[-1] in policy.eos_ids:
            watch(row, tokens[:-1], True)
        else:
            watch(row, tokens, len(tokens) == longest)
        return keep

    return listen


def _read(
    prompts: PromptBatch, samples: Samples, policy: Start, rows: Sequence[Row], answers: int, stop: Sequence[str]
) -> AnsweredBatch:
    """Decodes the answers to the prompts of a batch, which are its first; the others are padding."""
    count = len(rows) * answers
    tokens, mask, terminated = (part[:count] for part in to_host((samples.tokens, samples.mask, samples.terminated)))
    lengths = mask.sum(axis=1)
    last = np.take_along_axis(tokens, np.maximum(lengths - 1, 0)[:, None], axis=1)[:, 0]
    by_eos = terminated & np.isin(last, policy.eos_ids)
    texts = answer_texts(policy.tokenizer, tokens, lengths, by_eos)
    stopped = terminated & ~by_eos
    texts = [before_stop(stop, text) if cut else text for text, cut in zip(texts, stopped, strict=True)]
    return AnsweredBatch(
        rows=rows,
        completions=[texts[i : i + answers] for i in range(0, len(texts), answers)],
        lengths=lengths.reshape(-1, answers),
        terminated=terminated.reshape(-1, answers),
        prompts=prompts,
        samples=samples,
    )
