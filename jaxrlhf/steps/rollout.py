"""From sampled answers to a `Rollout`: log-probabilities by the training forward, values, rewards, advantages."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxrlhf.losses import gae, kl_estimate, kl_shaped_rewards, whiten, whiten_keep_mean
from jaxrlhf.losses.kl import last_token
from jaxrlhf.ops.masked import masked_sum, positions_of
from jaxrlhf.ops.stats import Mean, Sum, max_of, mean_of, min_of
from jaxrlhf.steps.scoring import sequence_scores, token_logprobs, token_values
from jaxrlhf.steps.update import join_rows, split_rows
from jaxrlhf.types import Hyper, Metrics, Model, Params, PromptBatch, Rollout, Samples, TokenBatch


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Experience:
    """Sampled answers and what everyone says of them; [B, R] arrays are float32 and 0 outside the answer.

    Attributes:
        batch: prompts and answers as `response_batch` makes them.
        samples: `Samples` of B rows.
        logprobs: [B, R], under the policy, by the training forward.
        ref_logprobs: [B, R], under the reference.
        values: [B, R], by the critic.
        scores: name of a reward -> [B] float32, NaN where it has no opinion.
    """

    batch: TokenBatch
    samples: Samples
    logprobs: jax.Array
    ref_logprobs: jax.Array
    values: jax.Array
    scores: Mapping[str, jax.Array]


JudgeFn = Callable[[Params, Params, Mapping[str, Any], PromptBatch, Samples, Hyper], Experience]


def make_judge(policy: Model, critic: Model, scorer: Model | None, *, rows_at_once: int, answers: int) -> JudgeFn:
    """Builds `judge(policy_params, critic_params, frozen, prompts, samples, hyper) -> Experience`.

    `frozen` holds the parameters of the reference under "reference", and of the reward model under "scorer". Rows go
    through the models in the parts in which the update will take them, so that the same rows meet the same shapes in
    both and the ratio of the first update is exactly 1.

    Args:
        policy: also the reference, under other parameters.
        critic: a model with a scalar head.
        scorer: a reward model that reads the policy's tokens, or None.
        rows_at_once: rows of a micro-batch of the update; a batch of more rows is a multiple of it.
        answers: answers to each prompt.
    """

    def judge(
        policy_params: Params,
        critic_params: Params,
        frozen: Mapping[str, Any],
        prompts: PromptBatch,
        samples: Samples,
        hyper: Hyper,
    ) -> Experience:
        prompts = jax.tree.map(lambda leaf: jnp.repeat(leaf, answers, axis=0), prompts)
        batch = response_batch(prompts, samples)

        def one(part: tuple[TokenBatch, TokenBatch]) -> dict[str, Any]:
            batch, whole = part
            out, _ = token_logprobs(policy, policy_params, batch, temperature=hyper["temperature"])
            ref, _ = token_logprobs(policy, frozen["reference"], batch, temperature=hyper["temperature"])
            scores = {} if scorer is None else {"reward_model": sequence_scores(scorer, frozen["scorer"], whole)}
            values = token_values(critic, critic_params, batch)
            return {"logprobs": out.logp, "ref_logprobs": ref.logp, "values": values, "scores": scores}

        rows = (batch, scorer_batch(prompts, samples))
        parts = max(1, batch.tokens.shape[0] // rows_at_once)
        said = one(rows) if parts == 1 else join_rows(jax.lax.map(one, split_rows(rows, parts)))
        return Experience(batch=batch, samples=samples, **said)

    return judge


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
        positions=positions_of(segments)[:, :-1],
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
        positions=positions_of(segments),
        segment_ids=segments,
    )


def make_rollout(experience: Experience, hyper: Hyper, *, whiten_rewards: bool) -> tuple[Rollout, Metrics]:
    """Shapes rewards and estimates advantages over the whole batch.

    An answer that a reward has no opinion on, and a row without a prompt (padding), teach nothing.

    Args:
        experience: what `make_judge` made.
        hyper: reads `kl_coef`, `gamma`, `lam`, and `missing_eos_penalty`, which is subtracted from the score of an
            answer that was cut off.
        whiten_rewards: whether the shaped rewards are scaled to variance 1 before GAE.

    Returns:
        The `Rollout`, and metrics `objective/*`, `rewards/*`, `completions/*`, `val/num_eos_tokens`, `num_tokens`.
    """
    samples = experience.samples
    scores = jnp.sum(jnp.stack(list(experience.scores.values())), axis=0)
    there = jnp.isfinite(scores) & _has_prompt(experience)
    mask = samples.mask & there[:, None]
    shaped_scores = jnp.where(there, scores - jnp.where(samples.terminated, 0.0, hyper["missing_eos_penalty"]), 0.0)
    kl = kl_estimate(experience.logprobs, experience.ref_logprobs, "k1")
    rewards = kl_shaped_rewards(shaped_scores, kl, mask, kl_coef=hyper["kl_coef"])
    if whiten_rewards:
        rewards = whiten_keep_mean(rewards, mask)
    advantages, returns = gae(rewards, experience.values, mask, gamma=hyper["gamma"], lam=hyper["lam"])
    rollout = Rollout(
        batch=experience.batch,
        mask=mask,
        logprobs=experience.logprobs,
        ref_logprobs=experience.ref_logprobs,
        values=experience.values,
        advantages=whiten(advantages, mask),
        returns=returns,
    )
    sequence_kl = masked_sum(kl, mask, axis=1)
    non_score = -hyper["kl_coef"] * sequence_kl
    return rollout, {
        "objective/kl": mean_of(sequence_kl, there),
        "objective/entropy": mean_of(masked_sum(-experience.logprobs, mask, axis=1), there),
        "objective/non_score_reward": mean_of(non_score, there),
        "objective/rlhf_reward": mean_of(shaped_scores + non_score, there),
        "objective/scores": mean_of(scores, there),
        **{f"rewards/{name}/mean": mean_of(own, there) for name, own in experience.scores.items()},
        **_sample_metrics(experience, there),
    }


def _sample_metrics(experience: Experience, there: jax.Array) -> Metrics:
    samples, real = experience.samples, _has_prompt(experience)
    lengths = jnp.sum(samples.mask, axis=1)
    difference = jnp.abs(samples.sampling_logprobs - experience.logprobs)
    return {
        "objective/unscored": Sum(jnp.sum(real & ~there, dtype=jnp.float32)),
        "val/num_eos_tokens": Mean(jnp.sum(samples.terminated & real, dtype=jnp.float32), jnp.ones(())),
        "completions/mean_length": mean_of(lengths, real),
        "completions/min_length": min_of(lengths, real),
        "completions/max_length": max_of(lengths, real),
        "completions/clipped_ratio": mean_of(~samples.terminated, real),
        "sampling/sampling_logp_difference/mean": mean_of(difference, samples.mask & real[:, None]),
        "sampling/sampling_logp_difference/max": max_of(difference, samples.mask & real[:, None]),
        "num_tokens": Sum(jnp.sum((experience.batch.segment_ids != 0) & real[:, None], dtype=jnp.float32)),
    }


def _has_prompt(experience: Experience) -> jax.Array:
    prompt_columns = experience.batch.tokens.shape[1] + 1 - experience.samples.tokens.shape[1]
    return jnp.any(experience.batch.segment_ids[:, :prompt_columns] != 0, axis=1)


def _joined(prompts: PromptBatch, samples: Samples) -> tuple[jax.Array, jax.Array]:
    ids = jnp.concatenate([prompts.tokens, samples.tokens], axis=1)
    return ids, jnp.concatenate([prompts.segment_ids, samples.mask.astype(jnp.int32)], axis=1)
