"""Policy-gradient losses: the clipped surrogate of PPO."""

from __future__ import annotations

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxrlhf.ops.masked import masked_mean
from jaxrlhf.ops.stats import Mean, mean_of


class Surrogate(NamedTuple):
    """The clipped surrogate of each token; [B, T] arrays.

    Attributes:
        costs: float32, to be minimised; 0 outside the mask.
        log_ratio: float32, log-probability now less that when it was sampled; 0 outside the mask.
        low: bool, True where the ratio was clipped from below (a bad token that has become unlikely enough).
        high: bool, True where it was clipped from above (a good token that has become likely enough).
    """

    costs: jax.Array
    log_ratio: jax.Array
    low: jax.Array
    high: jax.Array


def clipped_surrogate(
    logprobs: jax.Array,
    old_logprobs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    clip_low: jax.Array | float,
    clip_high: jax.Array | float,
) -> Surrogate:
    """Clipped surrogate (Schulman et al. 2017, eq. 7), with an interval that may be asymmetric (Yu et al. 2025, DAPO).

    Each token costs max(-A * ratio, -A * clip(ratio, 1 - clip_low, 1 + clip_high)) with
    ratio = exp(logprobs - old_logprobs).

    Args:
        logprobs: [B, T] float array, log-probability of each response token under the policy.
        old_logprobs: [B, T] float array, the same under the policy that sampled them.
        advantages: [B, T] float array; no gradient flows through it.
        mask: [B, T] bool array, True at response tokens.
        clip_low: how far the ratio may fall, in [0, 1].
        clip_high: how far the ratio may rise, not negative.
    """
    arrays = [logprobs, old_logprobs, advantages, mask]
    chex.assert_rank(arrays, 2)
    chex.assert_equal_shape(arrays)
    advantages = jax.lax.stop_gradient(jnp.where(mask, advantages, 0.0))
    # Padding is selected away before exp: its difference may overflow, and the gradient of inf is NaN.
    log_ratio = jnp.where(mask, logprobs.astype(jnp.float32) - jax.lax.stop_gradient(old_logprobs), 0.0)
    ratio = jnp.exp(log_ratio)
    plain = -advantages * ratio
    clipped = -advantages * jnp.clip(ratio, 1.0 - clip_low, 1.0 + clip_high)
    return Surrogate(
        costs=jnp.maximum(plain, clipped),
        log_ratio=log_ratio,
        low=(clipped > plain) & (advantages < 0),
        high=(clipped > plain) & (advantages > 0),
    )


def ppo_policy_loss(
    logprobs: jax.Array,
    old_logprobs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    clip_eps: jax.Array | float,
    denom: jax.Array | float | None = None,
) -> tuple[jax.Array, dict[str, Mean]]:
    """Clipped surrogate policy loss of PPO (Schulman et al. 2017, eq. 7), a token mean to be minimised.

    The costs are those of `clipped_surrogate` with clip_low = clip_high = clip_eps.

    Args:
        logprobs: [B, T] float array, log-probability of each response token under the policy.
        old_logprobs: [B, T] float array, the same under the policy that sampled them.
        advantages: [B, T] float array; no gradient flows through it.
        mask: [B, T] bool array, True at response tokens.
        clip_eps: half-width of the ratio's interval, positive.
        denom: number of tokens to divide by; None means those of `mask`.

    Returns:
        Scalar float32 loss, and metrics `loss/policy_avg`, `policy/approxkl_avg` (half the squared log-ratio),
        `policy/clipfrac_avg` (share of tokens whose clipped cost is the larger), `val/ratio`.
    """
    found = clipped_surrogate(logprobs, old_logprobs, advantages, mask, clip_low=clip_eps, clip_high=clip_eps)
    metrics = {
        "loss/policy_avg": mean_of(found.costs, mask),
        "policy/approxkl_avg": mean_of(0.5 * jnp.square(found.log_ratio), mask),
        "policy/clipfrac_avg": mean_of(found.low | found.high, mask),
        "val/ratio": mean_of(jnp.exp(found.log_ratio), mask),
    }
    return masked_mean(found.costs, mask, denom), metrics
