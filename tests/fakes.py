"""Fake models and batches, for tests of what takes a `types.Model` and never asks what is in it."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrlhf.types import (
    Head,
    KVCache,
    Model,
    ModelOutput,
    PairBatch,
    PromptBatch,
    RankedBatch,
    TokenBatch,
    UnpairedBatch,
)

VOCAB = 23


def counting_model(vocab: int = VOCAB) -> tuple[Model, Any]:
    """A model that puts almost all probability on the next integer, and its parameters."""

    def hidden_of(params: Any, tokens: jax.Array) -> jax.Array:
        return params["peak"] * jax.nn.one_hot((tokens + 1) % vocab, vocab)

    return _model(hidden_of, lambda params: Head(weight=jnp.eye(vocab))), {"peak": jnp.float32(30.0)}


def bigram_model(vocab: int = VOCAB, width: int = 8, scalar: bool = False, seed: int = 0) -> tuple[Model, Any]:
    """A learnable model that sees one token, and parameters named as a decoder's; `scalar` gives a score a token."""
    embed_key, head_key = jax.random.split(jax.random.key(seed))
    name, rows = ("score", 1) if scalar else ("lm_head", vocab)
    params = {
        "embed_tokens": {"embedding": jax.random.normal(embed_key, (vocab, width))},
        name: {"kernel": 0.5 * jax.random.normal(head_key, (rows, width))},
    }
    model = _model(
        lambda params, tokens: params["embed_tokens"]["embedding"][tokens],
        lambda params: Head(weight=params[name]["kernel"]),
    )
    return model, params


def token_batch(
    lengths: Sequence[int], width: int, *, prompt: int = 1, vocab: int = VOCAB, seed: int = 0
) -> TokenBatch:
    """Rows of random tokens, the padding on the right too; all after the first `prompt` are trained. 0 is no row."""
    draws = np.random.default_rng(seed).integers(1, vocab, (len(lengths), width + 1), np.int32)
    columns, ends = np.arange(width, dtype=np.int32)[None, :], np.asarray(lengths)[:, None]
    return TokenBatch(
        tokens=draws[:, :-1],
        targets=draws[:, 1:],
        mask=(columns >= prompt - 1) & (columns < ends),
        positions=np.repeat(columns, len(lengths), axis=0),
        segment_ids=(columns < ends).astype(np.int32),
    )


def score_batch(lengths: Sequence[int], width: int, *, vocab: int = VOCAB, seed: int = 0) -> TokenBatch:
    """As `token_batch`, with the mask at the last token of each row, which carries the score."""
    last = np.arange(width)[None, :] == np.asarray(lengths)[:, None] - 1
    return dataclasses.replace(token_batch(lengths, width, vocab=vocab, seed=seed), mask=last)


def grouped(rows: TokenBatch, answers: int) -> TokenBatch:
    """Rows as answers: leaves [B * K, ...] become [B, K, ...]."""
    return jax.tree.map(lambda leaf: leaf.reshape(-1, answers, *leaf.shape[1:]), rows)


def pair_batch(rows: TokenBatch, margin: float = 0.0) -> PairBatch:
    """Neighbouring rows as chosen and rejected."""
    return PairBatch(answers=grouped(rows, 2), margin=np.full(rows.tokens.shape[0] // 2, margin, np.float32))


def unpaired_batch(rows: TokenBatch, mismatched: TokenBatch) -> UnpairedBatch:
    """Rows as single answers, two good ones before each bad one."""
    desirable = (np.arange(rows.tokens.shape[0]) % 3 < 2) & rows.segment_ids.any(axis=1)
    return UnpairedBatch(answers=rows, desirable=desirable, mismatched=mismatched)


def ranked_batch(rows: TokenBatch, ranks: Sequence[Sequence[int]]) -> RankedBatch:
    """Neighbouring rows as the ranked answers to one prompt."""
    return RankedBatch(answers=grouped(rows, len(ranks[0])), ranks=np.asarray(ranks, np.int32))


def prompt_batch(prompts: Sequence[Sequence[int]], width: int, row_ids: Sequence[int] | None = None) -> PromptBatch:
    """Prompts padded on the left with token 1; an empty one is a padding row."""
    tokens, segments = (np.full((len(prompts), width), filler, np.int32) for filler in (1, 0))
    for row, prompt in enumerate(prompts):
        tokens[row, width - len(prompt) :] = prompt
        segments[row, width - len(prompt) :] = 1
    ids = np.arange(len(prompts)) if row_ids is None else np.asarray(row_ids)
    return PromptBatch(tokens=tokens, segment_ids=segments, row_ids=ids.astype(np.int32))


def hyper(**values: float) -> dict[str, jax.Array]:
    """Hyper-parameters as a step takes them: rate 1 and no clipping, unless given."""
    return {name: jnp.float32(value) for name, value in {"learning_rate": 1.0, "max_grad_norm": 1e9, **values}.items()}


def _model(hidden_of: Callable[[Any, jax.Array], jax.Array], head: Callable[[Any], Head]) -> Model:
    def apply(
        params: Any,
        tokens: jax.Array,
        *,
        positions: jax.Array,
        segment_ids: jax.Array,
        cache: KVCache | None = None,
        key: jax.Array | None = None,
    ) -> ModelOutput:
        if cache is not None:
            cache = dataclasses.replace(cache, index=cache.index + tokens.shape[1])
        return ModelOutput(hidden=hidden_of(params, tokens), cache=cache, aux={})

    def init_cache(batch: int, length: int, dtype: Any = None) -> KVCache:
        keys, values = (jnp.zeros((1, batch, 1, length, 1)) for _ in range(2))
        return KVCache(keys=keys, values=values, start=jnp.zeros((batch,), jnp.int32), index=jnp.zeros((), jnp.int32))

    return Model(apply=apply, head=head, init_cache=init_cache)
