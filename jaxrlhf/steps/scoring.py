"""From a batch and a model to what losses take: per-token log-probabilities, values, and scores of whole sequences."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxrlhf.kernels import fused_token_loss, linear_logprobs
from jaxrlhf.kernels.logits import logits_of
from jaxrlhf.kernels.rowwise import TokenLossFn
from jaxrlhf.ops.masked import masked_sum
from jaxrlhf.ops.stats import Sum
from jaxrlhf.types import Head, LogprobOut, Metrics, Model, Params, TokenBatch


def token_logprobs(
    model: Model,
    params: Params,
    batch: TokenBatch,
    *,
    want: Sequence[str] = ("logp",),
    temperature: jax.Array | float | None = None,
    ref_params: Params | None = None,
    key: jax.Array | None = None,
) -> tuple[LogprobOut, jax.Array]:
    """Log-probabilities of a batch's targets at the columns that a loss reads.

    Args:
        model: the policy.
        params: its parameters.
        batch: `TokenBatch` of [B, T].
        want: fields of `LogprobOut` to compute.
        temperature: divides the logits.
        ref_params: of a frozen reference, where `want` names `kl` or `ref_logp`.
        key: for dropout.

    Returns:
        `LogprobOut` of [B, C] arrays, 0 outside the mask, and the mask [B, C]; C is T where the batch names no columns.
        Where answers share rows all are [B, K, C], as `columns` are.
    """
    hidden = _hidden(model, params, batch, key)
    targets, mask = at_columns(batch, batch.targets), at_columns(batch, batch.mask)
    ref = _reference(model, ref_params, batch)
    head = model.head(params)
    return linear_logprobs(hidden, head, targets, want=want, mask=mask, ref=ref, temperature=temperature), mask


def token_loss(
    model: Model,
    params: Params,
    batch: TokenBatch,
    loss_fn: TokenLossFn,
    *,
    aux: Any = None,
    given: Any = None,
    want: Sequence[str] = ("logp",),
    temperature: jax.Array | float | None = None,
    ref_params: Params | None = None,
    key: jax.Array | None = None,
) -> tuple[jax.Array, Metrics]:
    """A loss that adds up over the tokens of a batch, by `kernels.fused_token_loss`.

    Args:
        model: the policy.
        params: its parameters.
        batch: `TokenBatch` of [B, T].
        loss_fn: `loss_fn(out, mask, aux, given) -> (scalar, metrics)` on some of the tokens.
        aux: pytree of [B, C] arrays.
        given: pytree of what does not belong to tokens.
        want: fields of `LogprobOut` that the loss reads.
        temperature: divides the logits.
        ref_params: of a frozen reference, where `want` names `kl` or `ref_logp`.
        key: for dropout.
    """
    return fused_token_loss(
        loss_fn,
        _hidden(model, params, batch, key),
        model.head(params),
        at_columns(batch, batch.targets),
        aux,
        given,
        want=want,
        mask=at_columns(batch, batch.mask),
        ref=_reference(model, ref_params, batch),
        temperature=temperature,
    )


def token_values(model: Model, params: Params, batch: TokenBatch, *, key: jax.Array | None = None) -> jax.Array:
    """Values of a model with a scalar head at the columns that a loss reads: [B, C] float32, 0 outside the mask."""
    hidden, mask = _hidden(model, params, batch, key), at_columns(batch, batch.mask)
    hidden = jnp.where(mask[..., None], hidden.astype(jnp.float32), 0.0)  # 0 * NaN is NaN in the gradient of the head
    return jnp.where(mask, logits_of(hidden, model.head(params))[..., 0], 0.0)


def sequence_logprobs(logprobs: jax.Array, mask: jax.Array) -> jax.Array:
    """Sum over the tokens of each row: [B, C] and its mask to [B]."""
    return masked_sum(logprobs, mask, axis=1)


def sequence_scores(model: Model, params: Params, batch: TokenBatch, *, key: jax.Array | None = None) -> jax.Array:
    """Scores [B] of whole sequences: the scalar at the one True of each row of the mask; 0 for rows without one."""
    return jnp.sum(token_values(model, params, batch, key=key), axis=1)


def at_columns(batch: TokenBatch, values: jax.Array) -> jax.Array:
    """Picks the columns that a loss reads: [B, T, ...] to [B, C, ...]; padding columns give 0 and False.

    Columns [B, K, C] give [B, K, C, ...].
    """
    if batch.columns is None:
        return values
    fill: Any = False if values.dtype == bool else 0
    return jax.vmap(lambda row, columns: row.at[columns].get(mode="fill", fill_value=fill))(values, batch.columns)


def flat_answers(answers: TokenBatch) -> TokenBatch:
    """Rows for a model, answers to a prompt next to each other: leaves [B, K, ...] become [B * K, ...].

    Where answers share rows, those are rows already, and `columns` [B, K, C] become [B, K * C].
    """
    columns = _shared_columns(answers)
    if columns is not None:
        return dataclasses.replace(answers, columns=columns.reshape(columns.shape[0], -1))
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), answers)


def answer_sums(answers: TokenBatch, values: jax.Array) -> jax.Array:
    """Sums over the tokens of each answer of a `PairBatch` or `RankedBatch`.

    Args:
        answers: the answers.
        values: of the columns that are read of `flat_answers(answers)`, 0 outside the mask.

    Returns:
        [B, K].
    """
    rows, count = present(answers).shape
    return jnp.sum(values.reshape(rows, count, -1), axis=2)


def num_tokens(batch: TokenBatch) -> Sum:
    """The number of tokens that are not padding; a prompt that answers share counts once for each of them."""
    real = batch.segment_ids != 0
    if batch.prefix_ids is None:
        return Sum(jnp.sum(real, dtype=jnp.float32))
    times = jnp.sum(present(batch), axis=1, dtype=jnp.float32)[:, None]
    return Sum(jnp.sum(jnp.where(real, jnp.where(batch.prefix_ids == 0, times, 1.0), 0.0)))


def present(answers: TokenBatch) -> jax.Array:
    """[B, K] bool: which answers of a `PairBatch` or `RankedBatch` are there; one that is all padding is not.

    Of single answers, [B, T], it gives [B].
    """
    columns = _shared_columns(answers)
    if columns is not None:
        return jnp.any(columns < answers.tokens.shape[1], axis=2)
    return jnp.any(answers.segment_ids != 0, axis=-1)


def _shared_columns(answers: TokenBatch) -> jax.Array | None:
    """The columns [B, K, C] of answers that share rows, None of others."""
    return None if answers.prefix_ids is None else answers.columns


def _reference(model: Model, params: Params | None, batch: TokenBatch) -> tuple[jax.Array, Head] | None:
    return None if params is None else (_hidden(model, params, batch, None), model.head(params))


def _hidden(model: Model, params: Params, batch: TokenBatch, key: jax.Array | None) -> jax.Array:
    prefixes: dict[str, Any] = {} if batch.prefix_ids is None else {"prefix_ids": batch.prefix_ids}
    output = model.apply(
        params, batch.tokens, positions=batch.positions, segment_ids=batch.segment_ids, key=key, **prefixes
    )
    return at_columns(batch, output.hidden)
