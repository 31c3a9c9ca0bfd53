"""Generalised advantage estimation."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp


def gae(
    rewards: jax.Array, values: jax.Array, mask: jax.Array, *, gamma: jax.Array | float, lam: jax.Array | float
) -> tuple[jax.Array, jax.Array]:
    """Generalised advantage estimation (Schulman et al. 2016, eq. 16) over a response.

    delta_t = r_t + gamma * V_{t+1} - V_t and A_t = delta_t + gamma * lam * A_{t+1}, with V = A = 0 after the last
    token; returns are A + V, before any whitening.

    Args:
        rewards: [B, T] float array.
        values: [B, T] float array, value of the state in which token t is chosen.
        mask: [B, T] bool array, True at response tokens, which must be contiguous.
        gamma: discount, in [0, 1].
        lam: trace decay, in [0, 1].

    Returns:
        Advantages [B, T] and returns [B, T], float32, 0 outside the mask.
    """
    arrays = [rewards, values, mask]
    chex.assert_rank(arrays, 2)
    chex.assert_equal_shape(arrays)
    rewards = jnp.where(mask, rewards.astype(jnp.float32), 0.0)
    values = jnp.where(mask, values.astype(jnp.float32), 0.0)
    following = jnp.pad(values[:, 1:], ((0, 0), (0, 1)))
    deltas = rewards + gamma * following - values

    def backwards(after: jax.Array, delta: jax.Array) -> tuple[jax.Array, jax.Array]:
        now = delta + gamma * lam * after
        return now, now

    _, advantages = jax.lax.scan(backwards, jnp.zeros(rewards.shape[0]), deltas.T, reverse=True)
    advantages = jnp.where(mask, advantages.T, 0.0)
    return advantages, jnp.where(mask, advantages + values, 0.0)
