"""Policy-gradient losses: the clipped surrogate of PPO."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

from jaxrlhf.ops.masked import masked_mean
from jaxrlhf.ops.stats import Mean, mean_of


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

    Each token costs max(-A * ratio, -A * clip(ratio, 1 - clip_eps, 1 + clip_eps)) with
    ratio = exp(logprobs - old_logprobs).

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
    arrays = [logprobs, old_logprobs, advantages, mask]
    chex.assert_rank(arrays, 2)
    chex.assert_equal_shape(arrays)
    advantages = jax.lax.stop_gradient(advantages)
    # Padding is selected away before exp: its difference may overflow, and the gradient of inf is NaN.
    log_ratio = jnp.where(mask, logprobs.astype(jnp.float32) - jax.lax.stop_gradient(old_logprobs), 0.0)
    ratio = jnp.exp(log_ratio)
    plain = -advantages * ratio
    clipped = -advantages * jnp.clip(ratio, 1.0 - clip_eps, 1.0 + clip_eps)
    per_token = jnp.maximum(plain, clipped)
    metrics = {
        "loss/policy_avg": mean_of(per_token, mask),
        "policy/approxkl_avg": mean_of(0.5 * jnp.square(log_ratio), mask),
        "policy/clipfrac_avg": mean_of(clipped > plain, mask),
        "val/ratio": mean_of(ratio, mask),
    }
    return masked_mean(per_token, mask, denom), metrics
