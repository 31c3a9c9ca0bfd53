"""Supervised fine-tuning: the loss of a `TokenBatch`."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxrlhf.losses import lm_loss
from jaxrlhf.ops.stats import mean_of
from jaxrlhf.steps.scoring import num_tokens, token_logprobs
from jaxrlhf.steps.update import LossFn
from jaxrlhf.types import Hyper, Metrics, Model, Params, TokenBatch


def sft_loss(model: Model) -> LossFn:
    """The `loss_fn` of supervised fine-tuning; no hyper-parameters, nothing frozen."""

    def loss_fn(
        params: Params, frozen: Any, batch: TokenBatch, totals: jax.Array, hyper: Hyper, key: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        del frozen, hyper
        out, mask = token_logprobs(model, params, batch, want=("logp", "lse", "entropy", "max_logit"), key=key)
        assert out.logp is not None and out.lse is not None
        assert out.entropy is not None and out.max_logit is not None
        loss, metrics = lm_loss(out.logp, mask, denom=totals)
        return loss, {
            **metrics,
            "entropy": mean_of(out.entropy, mask),
            "mean_token_accuracy": mean_of(out.logp >= out.max_logit - out.lse, mask),
            "num_tokens": num_tokens(batch),
        }

    return loss_fn


def sft_totals(batch: TokenBatch) -> jax.Array:
    """The number of trained tokens."""
    return jnp.sum(batch.mask, dtype=jnp.float32)
