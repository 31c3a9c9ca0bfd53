"""Losses on pairs of answers under a policy and a reference: DPO."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

from jaxrlhf.ops.masked import masked_mean
from jaxrlhf.ops.stats import Mean, mean_of


def dpo_loss(
    chosen_logps: jax.Array,
    rejected_logps: jax.Array,
    ref_chosen_logps: jax.Array,
    ref_rejected_logps: jax.Array,
    *,
    beta: jax.Array | float,
    valid: jax.Array | None = None,
    denom: jax.Array | float | None = None,
) -> tuple[jax.Array, dict[str, Mean]]:
    """Direct preference optimisation (Rafailov et al. 2023, eq. 7): mean of -log sigmoid(margin of implicit rewards).

    The implicit reward of an answer is beta * (log-probability under the policy - under the reference).

    Args:
        chosen_logps: [B] float array, log-probability of the chosen answer under the policy, summed over its tokens.
        rejected_logps: [B] float array, the same of the rejected answer.
        ref_chosen_logps: [B] float array, of the chosen answer under the reference; no gradient flows through it.
        ref_rejected_logps: [B] float array, of the rejected answer under the reference; likewise.
        beta: strength of the KL constraint, positive.
        valid: [B] bool array, False at rows that do not count; None means all do.
        denom: number of pairs to divide by; None means the valid ones.

    Returns:
        Scalar float32 loss, and metrics `loss`, `rewards/chosen`, `rewards/rejected`, `rewards/margins`,
        `rewards/accuracies` (strictly greater: 0 while policy and reference are equal), `logps/chosen`,
        `logps/rejected`.
    """
    sums = [chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps]
    chex.assert_rank(sums, 1)
    chex.assert_equal_shape(sums)
    valid = jnp.ones(chosen_logps.shape, bool) if valid is None else valid
    chosen = beta * log_ratio(chosen_logps, ref_chosen_logps, valid)
    rejected = beta * log_ratio(rejected_logps, ref_rejected_logps, valid)
    per_pair = -jax.nn.log_sigmoid(chosen - rejected)
    metrics = {
        "loss": mean_of(per_pair, valid),
        "rewards/chosen": mean_of(chosen, valid),
        "rewards/rejected": mean_of(rejected, valid),
        "rewards/margins": mean_of(chosen - rejected, valid),
        "rewards/accuracies": mean_of(chosen > rejected, valid),
        "logps/chosen": mean_of(chosen_logps, valid),
        "logps/rejected": mean_of(rejected_logps, valid),
    }
    return masked_mean(per_pair, valid, denom), metrics


def log_ratio(logps: jax.Array, ref_logps: jax.Array, valid: jax.Array) -> jax.Array:
    """Log-probability under the policy minus that under the reference, float32, without gradient to the latter.

    Args:
        logps: [B] float array, of whole answers under the policy.
        ref_logps: [B] float array, the same under the reference.
        valid: [B] bool array, False at rows that do not count, which give 0.
    """
    # Selected before the sigmoid, whose gradient at NaN is NaN even for a cotangent of 0.
    return jnp.where(valid, logps.astype(jnp.float32) - jax.lax.stop_gradient(ref_logps), 0.0)
