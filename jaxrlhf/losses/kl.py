"""Estimates of KL(policy || reference) from sampled tokens, and the reward that carries the KL penalty."""

from __future__ import annotations

from typing import Literal

import chex
import jax
import jax.numpy as jnp

KLEstimator = Literal["k1", "k2", "k3"]


def kl_estimate(logprobs: jax.Array, ref_logprobs: jax.Array, kind: KLEstimator = "k1") -> jax.Array:
    """Per-token estimate of KL(policy || reference) from tokens that the policy sampled (Schulman 2020).

    With d = logprobs - ref_logprobs: k1 = d is unbiased and may be negative; k2 = d^2 / 2 is biased, of low variance;
    k3 = exp(-d) - 1 + d is unbiased and never negative. This is about their *values*: as a loss, k1 has a gradient of
    mean zero, k2 has the unbiased gradient of the KL, and k3 a biased one.

    Args:
        logprobs: float array, log-probability of the sampled tokens under the policy.
        ref_logprobs: float array of the same shape, under the reference.
        kind: "k1", "k2" or "k3".

    Returns:
        Float array of the same shape.

    Raises:
        ValueError: if `kind` is none of the three.
    """
    chex.assert_equal_shape([logprobs, ref_logprobs])
    if kind not in _ESTIMATORS:
        raise ValueError(f"kind={kind!r} is unknown; choose among {sorted(_ESTIMATORS)}")
    return _ESTIMATORS[kind](logprobs - ref_logprobs)


_ESTIMATORS = {
    "k1": lambda d: d,
    "k2": lambda d: 0.5 * jnp.square(d),
    "k3": lambda d: jnp.expm1(-d) + d,
}


def unbiased_kl(logprobs: jax.Array, ref_logprobs: jax.Array, old_logprobs: jax.Array) -> jax.Array:
    """KL(policy || reference) of each sampled token as a term of a loss: its value is k3, its gradient that of the KL.

    With d = logprobs - ref_logprobs and the ratio of the policy to the one that sampled, the gradient is
    ratio * d * grad(logprobs), whose mean over sampled tokens is that of the KL; k3's own is biased (Tang and Munos
    2025). Ratio and d carry no gradient themselves, so at a ratio of 1 this is k2's gradient.

    Args:
        logprobs: float array, log-probability of the sampled tokens under the policy.
        ref_logprobs: float array of the same shape, under the reference.
        old_logprobs: float array of the same shape, under the policy that sampled them.

    Returns:
        Float array of the same shape, ratio * k3 in value, not negative. It knows no mask: at padding the arguments
        must be finite (they are 0 where `linear_logprobs` gets a mask), or selected away before.
    """
    chex.assert_equal_shape([logprobs, ref_logprobs, old_logprobs])
    fixed = jax.lax.stop_gradient(logprobs)
    ratio = jnp.exp(fixed - old_logprobs)
    slope = ratio * (fixed - ref_logprobs)
    return ratio * kl_estimate(fixed, ref_logprobs, "k3") + slope * (logprobs - fixed)


def kl_shaped_rewards(scores: jax.Array, kl: jax.Array, mask: jax.Array, *, kl_coef: jax.Array | float) -> jax.Array:
    """Per-token rewards of RLHF: -kl_coef * kl at every response token, the score added at the last one.

    The last token is the end-of-sequence token of a finished answer, or the token at which the length ran out. (TRL
    adds the score one position later; with lambda < 1 the advantages differ.)

    Args:
        scores: [B] float array, score of each answer.
        kl: [B, T] float array, per-token KL to the reference.
        mask: [B, T] bool array, True at response tokens.
        kl_coef: price of a nat, not negative.

    Returns:
        [B, T] float32 array, 0 outside the mask.
    """
    chex.assert_rank([scores, kl, mask], [1, 2, 2])
    chex.assert_equal_shape([kl, mask])
    penalty = jnp.where(mask, -kl_coef * kl.astype(jnp.float32), 0.0)
    return penalty + jnp.where(last_token(mask), scores[:, None], 0.0)


def own_token_credit(
    logprobs: jax.Array, ref_logprobs: jax.Array, kl: jax.Array, mask: jax.Array, *, kl_coef: jax.Array | float
) -> jax.Array:
    """What the advantage of a token lacks where the reward before it carries the exact KL: -kl_coef (k1 - KL).

    The KL of a whole distribution is the same whichever token is drawn from it, so as a reward it teaches earlier
    tokens only. The estimate k1 tells the tokens apart, and its distance from the KL has mean 0: added to the advantage
    of its own token it gives the gradient of the KL there, while the KL after it enters without the estimate's noise.

    Args:
        logprobs: [B, T] float array, log-probability of each response token under the policy that sampled it.
        ref_logprobs: [B, T] float array, the same under the reference.
        kl: [B, T] float array, KL(policy || reference) of the distribution that the token was drawn from.
        mask: [B, T] bool array, True at response tokens.
        kl_coef: price of a nat, not negative.

    Returns:
        [B, T] float32 array, 0 outside the mask.
    """
    chex.assert_rank([logprobs, ref_logprobs, kl, mask], 2)
    chex.assert_equal_shape([logprobs, ref_logprobs, kl, mask])
    return jnp.where(mask, -kl_coef * (kl_estimate(logprobs, ref_logprobs, "k1") - kl), 0.0)


def adapted_kl_coef(
    kl_coef: jax.Array, kl: jax.Array, *, target: jax.Array | float, horizon: jax.Array | float, answers: jax.Array
) -> jax.Array:
    """The next price of a nat, which rises while the KL is above its target and falls below it.

    kl_coef * (1 + clip(kl / target - 1, -0.2, 0.2) * answers / horizon) (Ziegler et al. 2019, section 2.2).

    Args:
        kl_coef: scalar, the price so far, positive.
        kl: scalar, mean KL of an answer at this price, nats; NaN, where there was no answer, changes nothing.
        target: the KL wanted, nats, positive.
        horizon: answers in which an error of 20 % or more changes the price by a fifth of itself, not below `answers`.
        answers: scalar, number of answers that `kl` is the mean of.
    """
    error = jnp.clip(kl / target - 1.0, -0.2, 0.2)
    return jnp.where(jnp.isnan(kl), kl_coef, kl_coef * (1.0 + error * answers / horizon))


def last_token(mask: jax.Array) -> jax.Array:
    """[B, T] bool: True at the last True of each row of `mask` [B, T], nowhere in rows that have none."""
    columns = jnp.arange(mask.shape[1])[None, :]
    last = jnp.max(jnp.where(mask, columns, -1), axis=1, keepdims=True)
    return columns == last
