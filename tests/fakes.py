"""Fake models and batches, for tests of what takes a `types.Model` and never asks what is in it."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrlhf.types import Head, KVCache, Model, ModelOutput, PairBatch, PromptBatch, RankedBatch, TokenBatch

VOCAB = 23


def counting_model(vocab: int = VOCAB) -> tuple[Model, Any]:
    """A model with nothing to learn that puts almost all probability on the next integer, and its parameters."""

    def hidden_of(params: Any, tokens: jax.Array) -> jax.Array:
        return params["peak"] * jax.nn.one_hot((tokens + 1) % vocab, vocab)

    return _model(hidden_of, lambda params: Head(weight=jnp.eye(vocab))), {"peak": jnp.float32(30.0)}


def bigram_model(vocab: int = VOCAB, width: int = 8, scalar: bool = False) -> tuple[Model, Any]:
    """A learnable model that sees one token, and parameters named as a decoder's; `scalar` gives a score a token."""
    embed_key, head_key = jax.random.split(jax.random.key(int(scalar)))
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


def token_batch(lengths: Sequence[int], width: int, prompt: int = 1, vocab: int = VOCAB, seed: int = 0) -> TokenBatch:
    """Rows of random tokens, padded on the right with anything; targets after the prompt are trained, 0 is no row."""
    draws = np.random.default_rng(seed).integers(1, vocab, (len(lengths), width + 1), np.int32)
    columns, ends = np.arange(width)[None, :], np.asarray(lengths)[:, None]
    return TokenBatch(
        tokens=draws[:, :-1],
        targets=draws[:, 1:],
        mask=(columns >= prompt) & (columns < ends),
        positions=np.broadcast_to(columns, draws[:, :-1].shape).astype(np.int32),
        segment_ids=(columns < ends).astype(np.int32),
    )


def score_batch(lengths: Sequence[int], width: int, vocab: int = VOCAB, seed: int = 0) -> TokenBatch:
    """As `token_batch`, the mask at the one position that carries a score: the last token."""
    return token_batch(lengths, width, prompt=max(lengths), vocab=vocab, seed=seed).__class__(
        **{
            **vars(token_batch(lengths, width, vocab=vocab, seed=seed)),
            "mask": np.arange(width)[None, :] == np.asarray(lengths)[:, None] - 1,
        }
    )
