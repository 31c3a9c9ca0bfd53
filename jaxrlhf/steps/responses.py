"""Prompts and sampled answers as rows for a model: a row each, or the answers to a prompt in one."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxrlhf.losses.kl import last_token
from jaxrlhf.ops.masked import positions_of
from jaxrlhf.types import PromptBatch, Samples, TokenBatch


def response_batch(prompts: PromptBatch, samples: Samples) -> TokenBatch:
    """Prompts and their answers as one `TokenBatch` [B, P + R - 1] whose columns are the R response targets.

    Args:
        prompts: `PromptBatch` of B rows, one for each answer.
        samples: `Samples` of B rows.
    """
    ids, segments = _joined(prompts, samples)
    width, length = prompts.tokens.shape[1], samples.tokens.shape[1]
    columns = jnp.arange(width - 1, width - 1 + length, dtype=jnp.int32)
    return TokenBatch(
        tokens=ids[:, :-1],
        targets=ids[:, 1:],
        mask=jnp.pad(samples.mask, ((0, 0), (width - 1, 0))),
        positions=positions_of(segments)[:, :-1],
        segment_ids=segments[:, :-1],
        columns=jnp.broadcast_to(columns, (ids.shape[0], length)),
    )


def shared_response_batch(prompts: PromptBatch, samples: Samples) -> TokenBatch:
    """Rows that hold a prompt once and behind it all K answers to it: `TokenBatch` of [B, P - 1 + K * R].

    Segment 1 is the prompt without its last token, with which each answer begins, so that every column has one target.

    Args:
        prompts: `PromptBatch` of B rows.
        samples: `Samples` of B * K rows, the answers to a prompt next to each other.

    Returns:
        The batch, with `prefix_ids`, and `columns` [B, K, R] at the response targets.
    """
    rows, width = prompts.tokens.shape
    length = samples.tokens.shape[1]
    answers = samples.tokens.reshape(rows, -1, length)
    count = answers.shape[1]
    real = prompts.segment_ids[:, -1:, None] != 0
    mask = samples.mask.reshape(answers.shape)
    last = jnp.broadcast_to(prompts.tokens[:, -1:, None], (rows, count, 1))
    read = jnp.pad(mask[:, :, :-1], ((0, 0), (0, 0), (1, 0)), constant_values=True) & real
    before = jnp.sum(prompts.segment_ids != 0, axis=1, dtype=jnp.int32)[:, None, None] - 1
    position = jnp.where(read, before + jnp.arange(length, dtype=jnp.int32)[None, None], 0)

    def joined(prompt: jax.Array, answers: jax.Array) -> jax.Array:
        return jnp.concatenate([prompt, answers.reshape(rows, -1).astype(prompt.dtype)], axis=1)

    segments = jnp.where(read, jnp.arange(2, count + 2, dtype=jnp.int32)[None, :, None], 0)
    columns = jnp.arange(width - 1, width - 1 + count * length, dtype=jnp.int32).reshape(1, count, length)
    return TokenBatch(
        tokens=joined(prompts.tokens[:, :-1], jnp.concatenate([last, answers[:, :, :-1]], axis=2)),
        targets=joined(prompts.tokens[:, 1:], answers),
        mask=joined(jnp.zeros((rows, width - 1), bool), mask),
        positions=joined(positions_of(prompts.segment_ids)[:, :-1], position),
        segment_ids=joined(prompts.segment_ids[:, :-1], segments),
        columns=jnp.broadcast_to(columns, (rows, count, length)),
        prefix_ids=joined(jnp.zeros((rows, width - 1), jnp.int32), read),
    )


def scorer_batch(prompts: PromptBatch, samples: Samples) -> TokenBatch:
    """Prompts and their answers as a `TokenBatch` [B, P + R] for a scorer: whole, the mask at the last real token."""
    ids, segments = _joined(prompts, samples)
    return TokenBatch(
        tokens=ids,
        targets=jnp.zeros_like(ids),
        mask=last_token(segments != 0),
        positions=positions_of(segments),
        segment_ids=segments,
    )


def _joined(prompts: PromptBatch, samples: Samples) -> tuple[jax.Array, jax.Array]:
    """Ids and segments [B, P + R]; a row without a prompt is padding, whatever was sampled for it."""
    ids = jnp.concatenate([prompts.tokens, samples.tokens], axis=1)
    answered = samples.mask & (prompts.segment_ids[:, -1:] != 0)
    return ids, jnp.concatenate([prompts.segment_ids, answered.astype(jnp.int32)], axis=1)
