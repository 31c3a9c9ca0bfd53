"""GRPO: advantages within a group of answers to one prompt, and the ways to average over tokens and answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import chex
import jax
import jax.numpy as jnp

from jaxrlhf.losses.policy import clipped_surrogate
from jaxrlhf.ops.masked import masked_mean, masked_sum
from jaxrlhf.ops.stats import Mean, mean_of

Baseline = Literal["mean", "leave_one_out", "none"]
Scale = Literal["group", "batch", "none"]

STD_EPS = 1e-4
"""Added to a standard deviation that divides, as TRL does; rewards that differ by less are as good as equal."""


def group_advantages(
    rewards: jax.Array, valid: jax.Array, *, baseline: Baseline = "mean", scale: Scale = "group"
) -> jax.Array:
    """Advantages of answers over the others to the same prompt (Shao et al. 2024, section 4.1.2).

    Baselines: the group's "mean"; "leave_one_out", the mean of the others, which does not depend on the answer itself
    (Kool et al. 2019; RLOO, Ahmadian et al. 2024); or "none". Scales: the standard deviation of the "group", which
    weighs easy and hard prompts more (Liu et al. 2025, Dr. GRPO, take "none"), or of the whole "batch". Deviations are
    unbiased, over the valid answers; where they are 0, so are the advantages. An answer alone in its group has
    advantage 0 under either baseline.

    Args:
        rewards: [P, G] float array, G answers to each of P prompts.
        valid: [P, G] bool array, False at answers without a reward, which may hold anything.
        baseline: what is subtracted.
        scale: what divides.

    Returns:
        [P, G] float32 array, 0 where not valid.
    """
    chex.assert_rank([rewards, valid], 2)
    chex.assert_equal_shape([rewards, valid])
    rewards = jnp.where(valid, rewards.astype(jnp.float32), 0.0)
    for name, value, known in (("baseline", baseline, _BASELINES), ("scale", scale, {"none": None, **_DEVIATIONS})):
        if value not in known:
            raise ValueError(f"{name}={value!r} is unknown; choose among {sorted(known)}")
    centred = rewards - _BASELINES[baseline](rewards, valid)
    if scale == "none":
        return jnp.where(valid, centred, 0.0)
    deviation = _DEVIATIONS[scale](rewards, valid)
    return jnp.where(valid & (deviation > 0), centred / (deviation + STD_EPS), 0.0)


def group_std(rewards: jax.Array, valid: jax.Array) -> jax.Array:
    """[P] unbiased standard deviation of the valid rewards [P, G] of each group; 0 if they are equal, or only one."""
    return jnp.sqrt(_variance(rewards - _top(rewards, valid), valid, axis=1))


def _top(rewards: jax.Array, valid: jax.Array) -> jax.Array:
    """[P, 1] the largest valid reward of each group. Counted from it, equal rewards are exactly 0 whatever they are."""
    return jnp.max(jnp.where(valid, rewards, -jnp.inf), axis=1, keepdims=True, initial=-1e30)


def _variance(rewards: jax.Array, valid: jax.Array, axis: int | None) -> jax.Array:
    count = jnp.sum(valid, axis=axis, dtype=jnp.float32)
    mean = masked_sum(rewards, valid, axis=axis) / jnp.maximum(count, 1.0)
    mean = mean if axis is None else jnp.expand_dims(mean, axis)
    squares = masked_sum(jnp.square(rewards - mean), valid, axis=axis)
    return squares / jnp.maximum(count - 1.0, 1.0)


def _mean(rewards: jax.Array, valid: jax.Array) -> jax.Array:
    top, count = _top(rewards, valid), jnp.sum(valid, axis=1, keepdims=True)
    return top + masked_sum(rewards - top, valid, axis=1)[:, None] / jnp.maximum(count, 1)


def _mean_of_others(rewards: jax.Array, valid: jax.Array) -> jax.Array:
    top, others = _top(rewards, valid), jnp.sum(valid, axis=1, keepdims=True) - 1
    below = rewards - top
    total = masked_sum(below, valid, axis=1)[:, None] - below
    return jnp.where(others > 0, top + total / jnp.maximum(others, 1), rewards)


_BASELINES: dict[Baseline, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "mean": _mean,
    "leave_one_out": _mean_of_others,
    "none": lambda rewards, valid: jnp.zeros_like(rewards),
}
_DEVIATIONS: dict[Scale, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "group": lambda rewards, valid: group_std(rewards, valid)[:, None],
    "batch": lambda rewards, valid: jnp.sqrt(_variance(rewards, valid, axis=None)),
}


def sequence_mean(costs: jax.Array, mask: jax.Array, denom: jax.Array | float | None = None) -> jax.Array:
    """The mean over answers of the mean over their tokens (GRPO): a token of a short answer weighs more.

    Args:
        costs: [B, T] float array.
        mask: [B, T] bool array.
        denom: number of answers to divide by; None means those with a token.
    """
    tokens = jnp.sum(mask, axis=1, dtype=jnp.float32)
    per_answer = masked_sum(costs, mask, axis=1) / jnp.maximum(tokens, 1.0)
    return masked_mean(per_answer, tokens > 0, denom)


def fixed_length_mean(
    costs: jax.Array, mask: jax.Array, length: int, denom: jax.Array | float | None = None
) -> jax.Array:
    """The sum over tokens by a length that is the same for all answers (Liu et al. 2025, Dr. GRPO).

    Args:
        costs: [B, T] float array.
        mask: [B, T] bool array.
        length: tokens that an answer may have.
        denom: number of answers to divide by; None means those with a token.
    """
    return masked_mean(masked_sum(costs, mask, axis=1) / length, jnp.any(mask, axis=1), denom)


def grpo_loss(
    logprobs: jax.Array,
    old_logprobs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    clip_low: jax.Array | float = 0.2,
    clip_high: jax.Array | float = 0.2,
    kl: jax.Array | None = None,
    kl_coef: jax.Array | float | None = None,
    average: Callable[[jax.Array, jax.Array], jax.Array] = masked_mean,
) -> tuple[jax.Array, dict[str, Mean]]:
    """Policy loss of GRPO (Shao et al. 2024, eq. 3): the clipped surrogate, and a KL penalty that is part of the loss.

    Args:
        logprobs: [B, T] float array, log-probability of each response token under the policy.
        old_logprobs: [B, T] float array, the same under the policy that sampled them.
        advantages: [B] float array, one an answer, or [B, T]; see `group_advantages`.
        mask: [B, T] bool array, True at response tokens.
        clip_low: how far the ratio may fall, in [0, 1].
        clip_high: how far the ratio may rise; above `clip_low` it leaves room for unlikely tokens (Yu et al. 2025).
        kl: [B, T] float array, differentiable KL to the reference of each token; None means no penalty.
        kl_coef: price of a nat; given with `kl`, and only then.
        average: from costs [B, T] and mask to the loss: `masked_mean` over all tokens (DAPO), `sequence_mean` (GRPO),
            `functools.partial(fixed_length_mean, length=...)` (Dr. GRPO). For those who accumulate, each takes a
            `denom` by `functools.partial` too.

    Returns:
        Scalar float32 loss, and metrics `policy_loss` (a token mean), `clip_ratio/low_mean`, `clip_ratio/high_mean`,
        `clip_ratio/region_mean`, `ratio`, and with a penalty `kl`.

    Raises:
        ValueError: if one of `kl` and `kl_coef` is given without the other.
    """
    if (kl is None) != (kl_coef is None):
        raise ValueError("kl and kl_coef belong together: give both, or neither for no penalty")
    chex.assert_rank([advantages, mask], [{1, 2}, 2])
    spread = jnp.broadcast_to(advantages[:, None], mask.shape) if advantages.ndim == 1 else advantages
    found = clipped_surrogate(logprobs, old_logprobs, spread, mask, clip_low=clip_low, clip_high=clip_high)
    metrics = {
        "policy_loss": mean_of(found.costs, mask),
        "clip_ratio/low_mean": mean_of(found.low, mask),
        "clip_ratio/high_mean": mean_of(found.high, mask),
        "clip_ratio/region_mean": mean_of(found.low | found.high, mask),
        "ratio": mean_of(jnp.exp(found.log_ratio), mask),
    }
    costs = found.costs
    if kl is not None and kl_coef is not None:
        chex.assert_equal_shape([kl, mask])
        costs = costs + kl_coef * jnp.where(mask, kl, 0.0)
        metrics["kl"] = mean_of(kl, mask)
    return average(costs, mask), metrics
