"""From sampled answers to a `Rollout`: log-probabilities by the training forward, values, rewards, advantages."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxrlhf.losses import gae, kl_estimate, kl_shaped_rewards, whiten, whiten_keep_mean
from jaxrlhf.losses.kl import last_token
from jaxrlhf.ops.masked import masked_sum
from jaxrlhf.ops.stats import Sum, max_of, mean_of, min_of
from jaxrlhf.steps.scoring import sequence_scores, token_logprobs, token_values
from jaxrlhf.steps.update import join_rows, split_rows
from jaxrlhf.types import Hyper, Metrics, Model, Params, PromptBatch, Rollout, Samples, TokenBatch


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Scored:
    """What the models say of sampled answers, each [B, R] float32 and 0 outside the answer.

    Attributes:
        logprobs: under the policy, by the training forward.
        ref_logprobs: under the reference.
        values: by the critic.
    """

    logprobs: jax.Array
    ref_logprobs: jax.Array
    values: jax.Array


def response_batch(prompts: PromptBatch, samples: Samples) -> TokenBatch:
    """Prompts and their answers as one `TokenBatch` [B, P + R - 1] whose columns are the R response targets.

    Args:
        prompts: `PromptBatch` of B rows, one for each answer.
        samples: `Samples` of B rows.
    """
    ids, segments = _joined(prompts, samples)
    width, length = prompts.tokens.shape[1], samples.tokens.shape[1]
    columns = jnp.arange(width - 1, width - 1 + length, dtype=jnp.int32)
    return TokenBatch(
        tokens=ids[:, :-1],
        targets=ids[:, 1:],
        mask=jnp.pad(samples.mask, ((0, 0), (width - 1, 0))),
        positions=_positions(segments)[:, :-1],
        segment_ids=segments[:, :-1],
        columns=jnp.broadcast_to(columns, (ids.shape[0], length)),
    )


def scorer_batch(prompts: PromptBatch, samples: Samples) -> TokenBatch:
    """Prompts and their answers as a `TokenBatch` [B, P + R] for a scorer: whole, the mask at the last real token."""
    ids, segments = _joined(prompts, samples)
    return TokenBatch(
        tokens=ids,
        targets=jnp.zeros_like(ids),
        mask=last_token(segments != 0),
        positions=_positions(segments),
        segment_ids=segments,
    )


def make_score(
    policy: Model, critic: Model, *, parts: int
) -> Callable[[Params, Params, Params, TokenBatch, Hyper], Scored]:
    """Builds `score(policy_params, ref_params, critic_params, batch, hyper) -> Scored`.

    Rows go through the models in the parts in which the update will take them, so that the same rows meet the same
    shapes in both and the ratio of the first update is exactly 1.

    Args:
        policy: also the reference, under other parameters.
        critic: a model with a scalar head.
        parts: micro-batches of one epoch.
    """

    def score(policy_params: Params, ref_params: Params, critic_params: Params, batch: TokenBatch, hyper: Hyper):
        def one(part: TokenBatch) -> Scored:
            out, _ = token_logprobs(policy, policy_params, part, temperature=hyper["temperature"])
            ref, _ = token_logprobs(policy, ref_params, part, temperature=hyper["temperature"])
            assert out.logp is not None and ref.logp is not None
            values = token_values(critic, critic_params, part)
            return Scored(logprobs=out.logp, ref_logprobs=ref.logp, values=values)

        return one(batch) if parts == 1 else join_rows(jax.lax.map(one, split_rows(batch, parts)))

    return score


def make_reward_score(model: Model) -> Callable[[Params, PromptBatch, Samples], jax.Array]:
    """Builds `reward(params, prompts, samples) -> [B] float32`: the score of a reward model that shares the ids."""

    def reward(params: Params, prompts: PromptBatch, samples: Samples) -> jax.Array:
        return sequence_scores(model, params, scorer_batch(prompts, samples))

    return reward


def make_rollout(
    batch: TokenBatch,
    samples: Samples,
    scored: Scored,
    scores: jax.Array,
    hyper: Hyper,
    *,
    whiten_rewards: bool,
) -> tuple[Rollout, Metrics]:
    """Shapes rewards and estimates advantages over the whole batch.

    Args:
        batch: what `response_batch` made.
        samples: `Samples` of B rows.
        scored: what the models say of them.
        scores: [B] float32, reward of each answer; NaN where there is none, and the row then teaches nothing.
        hyper: reads `kl_coef`, `gamma`, `lam`, `missing_eos_penalty` (subtracted from the score of an answer that was
            cut off).
        whiten_rewards: whether the shaped rewards are scaled to variance 1 before GAE.

    Returns:
        The `Rollout`, and metrics `objective/*`, `val/num_eos_tokens`, `completions/*`.
    """
    there = jnp.isfinite(scores) & jnp.any(samples.mask, axis=1)
    mask = samples.mask & there[:, None]
    scores = jnp.where(there, scores, 0.0)
    shaped_scores = scores - jnp.where(samples.terminated, 0.0, hyper["missing_eos_penalty"])
    kl = kl_estimate(scored.logprobs, scored.ref_logprobs, "k1")
    rewards = kl_shaped_rewards(shaped_scores, kl, mask, kl_coef=hyper["kl_coef"])
    if whiten_rewards:
        rewards = whiten_keep_mean(rewards, mask)
    advantages, returns = gae(rewards, scored.values, mask, gamma=hyper["gamma"], lam=hyper["lam"])
    rollout = Rollout(
        batch=batch,
        mask=mask,
        logprobs=scored.logprobs,
        ref_logprobs=scored.ref_logprobs,
        values=scored.values,
        advantages=whiten(advantages, mask),
        returns=returns,
    )
    return rollout, _metrics(samples, scored, shaped_scores, scores, kl, mask, there, hyper)


def _metrics(samples, scored, shaped_scores, scores, kl, mask, there, hyper: Hyper) -> Metrics:
    sequence_kl = masked_sum(kl, mask, axis=1)
    non_score = -hyper["kl_coef"] * sequence_kl
    lengths = jnp.sum(samples.mask, axis=1)
    return {
        "objective/kl": mean_of(sequence_kl, there),
        "objective/entropy": mean_of(masked_sum(-scored.logprobs, mask, axis=1), there),
        "objective/non_score_reward": mean_of(non_score, there),
        "objective/rlhf_reward": mean_of(shaped_scores + non_score, there),
        "objective/scores": mean_of(scores, there),
        "objective/unscored": Sum(jnp.sum(~there, dtype=jnp.float32)),
        "val/num_eos_tokens": Sum(jnp.sum(samples.terminated, dtype=jnp.float32)),
        "completions/mean_length": mean_of(lengths),
        "completions/min_length": min_of(lengths, there),
        "completions/max_length": max_of(lengths, there),
        "completions/clipped_ratio": mean_of(~samples.terminated),
        "sampling/sampling_logp_difference/mean": mean_of(
            jnp.abs(samples.sampling_logprobs - scored.logprobs), samples.mask
        ),
    }


def _joined(prompts: PromptBatch, samples: Samples) -> tuple[jax.Array, jax.Array]:
    ids = jnp.concatenate([prompts.tokens, samples.tokens], axis=1)
    return ids, jnp.concatenate([prompts.segment_ids, samples.mask.astype(jnp.int32)], axis=1)


def _positions(segment_ids: jax.Array) -> jax.Array:
    return jnp.maximum(jnp.cumsum(segment_ids != 0, axis=1) - 1, 0)
