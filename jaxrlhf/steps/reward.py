"""Reward modelling: the losses of a `PairBatch` and a `RankedBatch`."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxrlhf.losses import kwise_reward_loss, pairwise_reward_loss
from jaxrlhf.losses.reward import comparable_pairs
from jaxrlhf.steps.scoring import answer_sums, flat_answers, num_tokens, present, token_values
from jaxrlhf.steps.update import LossFn
from jaxrlhf.types import Hyper, Metrics, Model, PairBatch, Params, RankedBatch, TokenBatch


def pairwise_loss(model: Model) -> LossFn:
    """The `loss_fn` of a reward model on pairs; nothing frozen; reads `center_coef` of `hyper`."""

    def loss_fn(
        params: Params, frozen: Any, batch: PairBatch, totals: jax.Array, hyper: Hyper, key: jax.Array | None
    ) -> tuple[jax.Array, Metrics]:
        del frozen
        scores = answer_scores(model, params, batch.answers, key)
        loss, metrics = pairwise_reward_loss(
            scores[:, 0],
            scores[:, 1],
            margin=batch.margin,
            center_coef=hyper["center_coef"],
            valid=_pair_there(batch),
            denom=totals,
        )
        return loss, {**metrics, "num_tokens": num_tokens(batch.answers)}

    return loss_fn


def pairwise_totals(batch: PairBatch) -> jax.Array:
    """The number of pairs."""
    return jnp.sum(_pair_there(batch), dtype=jnp.float32)


def kwise_loss(model: Model) -> LossFn:
    """The `loss_fn` of a reward model on rankings; nothing frozen."""

    def loss_fn(
        params: Params, frozen: Any, batch: RankedBatch, totals: jax.Array, hyper: Hyper, key: jax.Array | None
    ) -> tuple[jax.Array, Metrics]:
        del frozen, hyper
        scores = answer_scores(model, params, batch.answers, key)
        loss, metrics = kwise_reward_loss(scores, batch.ranks, valid=present(batch.answers), denom=totals)
        return loss, {**metrics, "num_tokens": num_tokens(batch.answers)}

    return loss_fn


def kwise_totals(batch: RankedBatch) -> jax.Array:
    """The number of prompts with at least one comparable pair."""
    pairs = comparable_pairs(batch.ranks, present(batch.answers))
    return jnp.sum(jnp.any(pairs, axis=(1, 2)), dtype=jnp.float32)


def answer_scores(model: Model, params: Params, answers: TokenBatch, key: jax.Array | None = None) -> jax.Array:
    """Scores [B, K] of the answers of a `PairBatch` or `RankedBatch`; all go through the model in one batch."""
    return answer_sums(answers, token_values(model, params, flat_answers(answers), key=key))


def _pair_there(batch: PairBatch) -> jax.Array:
    return jnp.all(present(batch.answers), axis=1)
