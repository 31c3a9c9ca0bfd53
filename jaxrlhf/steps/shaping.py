"""PPO before its updates: scores and KL become rewards, and rewards advantages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxrlhf.losses import (
    adapted_kl_coef,
    gae,
    kl_shaped_rewards,
    own_token_credit,
    whiten,
    whiten_keep_mean,
)
from jaxrlhf.ops.masked import masked_sum, whitening_scale
from jaxrlhf.ops.moments import RunningMoments, add_values
from jaxrlhf.ops.stats import Mean, mean_of
from jaxrlhf.steps.experience import Experience, has_prompt, sample_metrics, token_kl, total_scores
from jaxrlhf.types import Hyper, Metrics, Rollout

Normalize = Literal["none", "scale", "standardize"]


class Running(NamedTuple):
    """What PPO carries from one rollout to the next; what is not asked for is None.

    Attributes:
        kl_coef: float32 scalar, the price of a nat, if it adapts; else it is that of `hyper`.
        scores: of all scores so far, if they are normalised.
    """

    kl_coef: jax.Array | None = None
    scores: RunningMoments | None = None


FIXED = Running()
"""Nothing is carried: the price of a nat is fixed, and scores are taken as they are."""


def observe(running: Running, experience: Experience, weights: Mapping[str, float] | None = None) -> Running:
    """Takes in the scores of a rollout, before it is learned from."""
    if running.scores is None:
        return running
    return running._replace(scores=add_values(running.scores, *total_scores(experience, weights)))


def adapt(running: Running, experience: Experience, hyper: Hyper) -> Running:
    """Adapts the price of a nat to the KL of a rollout, after it was learned from.

    Args:
        running: as it was while learning.
        experience: the rollout.
        hyper: reads `kl_target` and `kl_horizon`; see `losses.adapted_kl_coef`.
    """
    if running.kl_coef is None:
        return running
    real = has_prompt(experience)
    kl = mean_of(masked_sum(token_kl(experience), experience.samples.mask, axis=1), real)
    adapted = adapted_kl_coef(
        running.kl_coef, kl.value, target=hyper["kl_target"], horizon=hyper["kl_horizon"], answers=kl.weight
    )
    return running._replace(kl_coef=adapted)


def make_rollout(
    experience: Experience,
    hyper: Hyper,
    running: Running = FIXED,
    *,
    whiten_rewards: bool,
    normalize: Normalize = "none",
    weights: Mapping[str, float] | None = None,
) -> tuple[Rollout, Metrics]:
    """Shapes rewards and estimates advantages over the whole batch.

    An answer that no reward has an opinion on, and a row without a prompt (padding), teach nothing.

    Args:
        experience: what `make_judge` made.
        hyper: reads `kl_coef`, `gamma`, `lam`; `score_clip`, the largest size of a (normalised) score; and
            `missing_eos_penalty`, which is then subtracted from the score of an answer that was cut off.
        running: what PPO carries from one rollout to the next.
        whiten_rewards: whether the shaped rewards are scaled to variance 1 before GAE.
        normalize: whether scores are divided by their running deviation ("scale"), after their running mean was
            subtracted ("standardize"); "none" takes them as they are.
        weights: of the rewards; see `experience.total_scores`.

    Returns:
        The `Rollout`, and metrics `objective/*`, `rewards/*`, `completions/*`, `val/num_eos_tokens`, `num_tokens`.
    """
    samples = experience.samples
    assert experience.logprobs is not None and experience.ref_logprobs is not None and experience.values is not None
    scores, there = total_scores(experience, weights)
    mask = samples.mask & there[:, None]
    kl_coef = hyper["kl_coef"] if running.kl_coef is None else running.kl_coef
    wanted = jnp.clip(_normalized(scores, running, normalize), -hyper["score_clip"], hyper["score_clip"])
    shaped_scores = jnp.where(there, wanted - jnp.where(samples.terminated, 0.0, hyper["missing_eos_penalty"]), 0.0)
    kl = token_kl(experience)
    rewards = kl_shaped_rewards(shaped_scores, kl, mask, kl_coef=kl_coef)
    own = _own_credit(experience, mask, kl_coef)
    if whiten_rewards:
        own = own * whitening_scale(rewards, mask)
        rewards = whiten_keep_mean(rewards, mask)
    advantages, returns = gae(rewards, experience.values, mask, gamma=hyper["gamma"], lam=hyper["lam"])
    rollout = Rollout(
        batch=experience.batch,
        mask=mask,
        logprobs=experience.logprobs,
        ref_logprobs=experience.ref_logprobs,
        values=experience.values,
        advantages=whiten(advantages + own, mask),
        returns=returns,
    )
    real = has_prompt(experience)
    non_score = -kl_coef * masked_sum(kl, samples.mask, axis=1)
    return rollout, {
        "objective/entropy": mean_of(masked_sum(-experience.logprobs, samples.mask, axis=1), real),
        "objective/non_score_reward": mean_of(non_score, there),
        "objective/rlhf_reward": mean_of(shaped_scores + non_score, there),
        "objective/scores": mean_of(scores, there),
        **_running_metrics(running),
        **sample_metrics(experience, there),
    }


def _normalized(scores: jax.Array, running: Running, normalize: Normalize) -> jax.Array:
    """Scores in running deviations; as long as these are all equal there is no deviation, and it counts as 1."""
    if running.scores is None:
        assert normalize == "none"
        return scores
    centre = {"scale": 0.0, "standardize": running.scores.mean}[normalize]
    return (scores - centre) / jnp.where(running.scores.std > 0, running.scores.std, 1.0)


def _own_credit(experience: Experience, mask: jax.Array, kl_coef: jax.Array) -> jax.Array | float:
    """See `losses.own_token_credit`; an estimate in the reward lacks nothing."""
    if experience.kl is None:
        return 0.0
    assert experience.logprobs is not None and experience.ref_logprobs is not None
    return own_token_credit(experience.logprobs, experience.ref_logprobs, experience.kl, mask, kl_coef=kl_coef)


def _running_metrics(running: Running) -> Metrics:
    one = jnp.ones(())
    metrics: Metrics = {}
    if running.kl_coef is not None:
        metrics["objective/kl_coef"] = Mean(running.kl_coef, one)
    if running.scores is not None:
        metrics["objective/running_score_mean"] = Mean(running.scores.mean, one)
        metrics["objective/running_score_std"] = Mean(running.scores.std, one)
    return metrics
