"""Supervised fine-tuning: the loss of a `TokenBatch`."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxrlhf.losses import lm_loss
from jaxrlhf.ops.stats import mean_of
from jaxrlhf.steps.scoring import num_tokens, token_loss
from jaxrlhf.steps.update import LossFn
from jaxrlhf.types import Hyper, LogprobOut, Metrics, Model, Params, TokenBatch


def sft_loss(model: Model) -> LossFn:
    """The `loss_fn` of supervised fine-tuning; no hyper-parameters, nothing frozen."""

    def loss_fn(
        params: Params, frozen: Any, batch: TokenBatch, totals: jax.Array, hyper: Hyper, key: jax.Array | None
    ) -> tuple[jax.Array, Metrics]:
        del frozen, hyper
        loss, metrics = token_loss(
            model, params, batch, _of_tokens, given=totals, want=("logp", "lse", "entropy", "max_logit"), key=key
        )
        return loss, {**metrics, "num_tokens": num_tokens(batch)}

    return loss_fn


def _of_tokens(out: LogprobOut, mask: jax.Array, aux: None, totals: jax.Array) -> tuple[jax.Array, Metrics]:
    del aux
    assert out.logp is not None and out.lse is not None
    assert out.entropy is not None and out.max_logit is not None
    loss, metrics = lm_loss(out.logp, mask, denom=totals)
    return loss, {
        **metrics,
        "entropy": mean_of(out.entropy, mask),
        "mean_token_accuracy": mean_of(out.logp >= out.max_logit - out.lse, mask),
    }


def sft_totals(batch: TokenBatch) -> jax.Array:
    """The number of trained tokens."""
    return jnp.sum(batch.mask, dtype=jnp.float32)
