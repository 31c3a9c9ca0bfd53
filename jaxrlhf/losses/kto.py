"""The loss of single answers that are good or bad, under a policy and a reference: KTO."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

from jaxrlhf.losses.preference import log_ratio
from jaxrlhf.ops.masked import masked_mean
from jaxrlhf.ops.stats import Difference, Mean, mean_of


def kto_loss(
    logps: jax.Array,
    ref_logps: jax.Array,
    desirable: jax.Array,
    kl: jax.Array | float,
    *,
    beta: jax.Array | float,
    desirable_weight: jax.Array | float,
    undesirable_weight: jax.Array | float,
    valid: jax.Array | None = None,
    denom: jax.Array | float | None = None,
) -> tuple[jax.Array, dict[str, Mean | Difference]]:
    """Kahneman-Tversky optimisation (Ethayarajh et al. 2024, eq. 8): each answer is worth more or less than a `kl`.

    With d = log-probability under the policy - under the reference, a desirable answer costs
    desirable_weight * (1 - sigmoid(beta * (d - kl))), an undesirable one undesirable_weight * (1 - sigmoid(beta *
    (kl - d))), and the loss is the mean over answers of both kinds.

    Args:
        logps: [B] float array, log-probability of each answer under the policy, summed over its tokens.
        ref_logps: [B] float array, the same under the reference; no gradient flows through it.
        desirable: [B] bool array, True at good answers and False at bad ones.
        kl: the point of reference, a scalar from 0: `kto_kl` of the whole batch; no gradient flows through it.
        beta: strength of the KL constraint, positive.
        desirable_weight: weight of good answers, positive.
        undesirable_weight: weight of bad answers, positive.
        valid: [B] bool array, False at rows that do not count; None means all do.
        denom: number of answers to divide by; None means the valid ones.

    Returns:
        Scalar float32 loss, and metrics `loss`, `kl`, `rewards/chosen` and `logps/chosen` (means over good answers),
        `rewards/rejected` and `logps/rejected` (over bad ones), `rewards/margins` (the difference of the two means).
    """
    chex.assert_rank([logps, ref_logps, desirable], 1)
    chex.assert_equal_shape([logps, ref_logps, desirable])
    chex.assert_type(desirable, bool)
    chex.assert_rank(kl, 0)
    valid = jnp.ones(logps.shape, bool) if valid is None else valid
    kl = jax.lax.stop_gradient(jnp.asarray(kl, jnp.float32))
    ratio = log_ratio(logps, ref_logps, valid)
    gain = beta * jnp.where(desirable, ratio - kl, kl - ratio)
    per_row = jnp.where(desirable, desirable_weight, undesirable_weight) * jax.nn.sigmoid(-gain)
    good, bad = valid & desirable, valid & ~desirable
    chosen, rejected = mean_of(beta * ratio, good), mean_of(beta * ratio, bad)
    metrics = {
        "loss": mean_of(per_row, valid),
        "kl": mean_of(jnp.full(valid.shape, kl), valid),
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/margins": Difference(chosen, rejected),
        "logps/chosen": mean_of(logps, good),
        "logps/rejected": mean_of(logps, bad),
    }
    return masked_mean(per_row, valid, denom), metrics


def kto_kl(logps: jax.Array, ref_logps: jax.Array, valid: jax.Array | None = None) -> jax.Array:
    """The point of reference of KTO: max(0, mean log-ratio of answers that belong to other prompts), no gradient.

    It estimates KL(policy || reference) of whole answers from prompts paired with each other's answers, and is to be
    taken over the whole batch, whose answers must be the same set as those of `kto_loss`.

    Args:
        logps: [B] float array, log-probability of a mismatched answer under the policy, summed over its tokens.
        ref_logps: [B] float array, the same under the reference.
        valid: [B] bool array, False at rows that do not count; None means all do.

    Returns:
        Scalar float32, at least 0; 0 where no row counts.
    """
    chex.assert_rank([logps, ref_logps], 1)
    chex.assert_equal_shape([logps, ref_logps])
    valid = jnp.ones(logps.shape, bool) if valid is None else valid
    mean = masked_mean(log_ratio(logps, ref_logps, valid), valid)
    return jax.lax.stop_gradient(jnp.maximum(mean, 0.0))
