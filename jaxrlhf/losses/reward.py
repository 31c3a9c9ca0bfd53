"""Reward-model losses: Bradley-Terry over pairs, and over all pairs of K ranked answers."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

from jaxrlhf.ops.masked import masked_mean, masked_sum
from jaxrlhf.ops.stats import Max, Mean, Min, max_of, mean_of, min_of


def pairwise_reward_loss(
    chosen: jax.Array,
    rejected: jax.Array,
    *,
    margin: jax.Array | None = None,
    center_coef: jax.Array | float = 0.0,
    valid: jax.Array | None = None,
    denom: jax.Array | float | None = None,
) -> tuple[jax.Array, dict[str, Mean | Max | Min]]:
    """Bradley-Terry loss of chosen over rejected: mean of -log sigmoid(chosen - rejected - margin).

    The margin is that of Llama 2 (Touvron et al. 2023, eq. 2). Centring adds `center_coef` * (chosen + rejected)^2
    (Eisenstein et al. 2023), which pins the level that comparisons leave free.

    Args:
        chosen: [B] float array, score of the preferred answer.
        rejected: [B] float array, score of the other.
        margin: [B] float array, by how much chosen should win; None means 0.
        center_coef: weight of the centring term, not negative; 0.01 is usual.
        valid: [B] bool array, False at rows that do not count; None means all do.
        denom: number of pairs to divide by; None means the valid ones.

    Returns:
        Scalar float32 loss, and metrics `loss`, `accuracy` (a tie counts one half), `margin`, `mean_reward`,
        `min_reward`, `max_reward`.
    """
    chex.assert_rank([chosen, rejected], 1)
    chex.assert_equal_shape([chosen, rejected])
    valid = jnp.ones(chosen.shape, bool) if valid is None else valid
    # Selected before the sigmoid, whose gradient at NaN is NaN even for a cotangent of 0.
    chosen = jnp.where(valid, chosen.astype(jnp.float32), 0.0)
    rejected = jnp.where(valid, rejected.astype(jnp.float32), 0.0)
    gap = chosen - rejected
    if margin is not None:
        chex.assert_equal_shape([chosen, margin])
    shortfall = gap if margin is None else gap - margin
    per_pair = -jax.nn.log_sigmoid(shortfall) + center_coef * jnp.square(chosen + rejected)
    metrics = {
        "loss": mean_of(per_pair, valid),
        "accuracy": mean_of(_wins(gap), valid),
        "margin": mean_of(gap, valid),
        **_reward_range(jnp.stack([chosen, rejected]), jnp.stack([valid, valid])),
    }
    return masked_mean(per_pair, valid, denom), metrics


def kwise_reward_loss(
    rewards: jax.Array,
    ranks: jax.Array,
    *,
    valid: jax.Array | None = None,
    denom: jax.Array | float | None = None,
) -> tuple[jax.Array, dict[str, Mean | Max | Min]]:
    """K-wise comparison loss (Ouyang et al. 2022, eq. 1), one batch element a prompt.

    For each prompt: the mean of -log sigmoid(reward_i - reward_j) over its pairs in which answer i ranks above answer
    j, C(K, 2) of them without ties; then the mean over prompts, so prompts with different K weigh the same. A tied pair
    says nothing and is counted nowhere. At K = 2 this is `pairwise_reward_loss`.

    Args:
        rewards: [B, K] float array, score of each answer.
        ranks: [B, K] int array, 1 is best; equal ranks are ties.
        valid: [B, K] bool array, False where a prompt has fewer than K answers; None means all are there.
        denom: number of prompts to divide by; None means those with at least one pair.

    Returns:
        Scalar float32 loss, and metrics `loss` (over prompts), `accuracy` and `margin` (over pairs; a tie of scores
        counts one half), `mean_reward`, `min_reward`, `max_reward`.
    """
    chex.assert_rank([rewards, ranks], 2)
    chex.assert_equal_shape([rewards, ranks])
    valid = jnp.ones(rewards.shape, bool) if valid is None else valid
    rewards = jnp.where(valid, rewards.astype(jnp.float32), 0.0)  # a NaN would reach every answer through the gaps
    gap = rewards[:, :, None] - rewards[:, None, :]  # [B, K, K]: winner, loser
    pairs = comparable_pairs(ranks, valid)
    count = jnp.sum(pairs, axis=(1, 2))
    total = jnp.sum(jnp.where(pairs, -jax.nn.log_sigmoid(gap), 0.0), axis=(1, 2))
    per_prompt = total / jnp.maximum(count, 1)
    metrics = {
        "loss": mean_of(per_prompt, count > 0),
        "accuracy": Mean(masked_sum(_wins(gap), pairs), jnp.sum(pairs, dtype=jnp.float32)),
        "margin": mean_of(gap, pairs),
        **_reward_range(rewards, valid),
    }
    return masked_mean(per_prompt, count > 0, denom), metrics


def comparable_pairs(ranks: jax.Array, valid: jax.Array) -> jax.Array:
    """[B, K, K] bool: entry [b, i, j] is True where answers i and j are there and i ranks above j (a smaller rank).

    Args:
        ranks: [B, K] int array.
        valid: [B, K] bool array.
    """
    return (ranks[:, :, None] < ranks[:, None, :]) & valid[:, :, None] & valid[:, None, :]


def _wins(gap: jax.Array) -> jax.Array:
    return jnp.where(gap > 0, 1.0, jnp.where(gap == 0, 0.5, 0.0))


def _reward_range(rewards: jax.Array, valid: jax.Array) -> dict[str, Mean | Max | Min]:
    return {
        "mean_reward": mean_of(rewards, valid),
        "min_reward": min_of(rewards, valid),
        "max_reward": max_of(rewards, valid),
    }
