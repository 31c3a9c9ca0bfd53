"""What everyone says of sampled answers: log-probabilities by the training forward, values, scores."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrlhf.losses import group_std, kl_estimate
from jaxrlhf.ops.masked import masked_sum
from jaxrlhf.ops.stats import Mean, Sum, max_of, mean_of, min_of
from jaxrlhf.steps.responses import response_batch, scorer_batch, shared_response_batch
from jaxrlhf.steps.scoring import flat_answers, num_tokens, sequence_scores, token_logprobs, token_values
from jaxrlhf.steps.update import join_rows, split_rows
from jaxrlhf.types import Hyper, Metrics, Model, Params, PromptBatch, Samples, TokenBatch, TrainState


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Experience:
    """Sampled answers and what everyone says of them; [B, R] arrays are float32 and 0 outside the answer.

    Attributes:
        batch: prompts and answers as `responses.response_batch` makes them or, of B / K rows, `shared_response_batch`.
        samples: `Samples` of B rows.
        logprobs: [B, R], under the policy, by the training forward, or None if answers are only scored.
        ref_logprobs: [B, R], under the reference, or None without one.
        values: [B, R], by the critic, or None without one.
        scores: name of a reward -> [B] float32, NaN where it has no opinion.
        kl: [B, R], KL(policy || reference) over the whole vocabulary before each token, or None if nobody asked.
    """

    batch: TokenBatch
    samples: Samples
    logprobs: jax.Array | None
    ref_logprobs: jax.Array | None
    values: jax.Array | None
    scores: Mapping[str, jax.Array]
    kl: jax.Array | None = None


class States(NamedTuple):
    """What learning changes, and donates.

    Attributes:
        models: the models that are trained: "policy", and with PPO "critic".
        running: pytree of what a method carries from one rollout to the next, or None.
    """

    models: dict[str, TrainState]
    running: Any = None


LearnFn = Callable[..., tuple[States, Metrics]]
"""`learn(states, frozen, experience, hyper) -> (states, metrics)`: all updates on one rollout. PPO's takes a fifth."""

JudgeFn = Callable[[Mapping[str, Params], Mapping[str, Params], PromptBatch, Samples, Hyper], Experience]


def make_judge(
    policy: Model | None,
    critic: Model | None,
    scorer: Model | None,
    *,
    rows_at_once: int,
    answers: int,
    share_prompts: bool = False,
    exact_kl: bool = False,
) -> JudgeFn:
    """Builds `judge(trained, frozen, prompts, samples, hyper) -> Experience`.

    `trained` holds the parameters of the policy under "policy", and of the critic under "critic" if there is one;
    `frozen` those of the reference under "reference", and of the reward model under "scorer", if there are. Rows go
    through the models in the parts in which the update will take them, so that the same rows meet the same shapes in
    both and the ratio of the first update is exactly 1.

    Args:
        policy: also the reference, under other parameters; None leaves both out.
        critic: a model with a scalar head, or None.
        scorer: a reward model that reads the policy's tokens, or None.
        rows_at_once: answers in a micro-batch of the update; a batch of more is a multiple of it.
        answers: answers to each prompt.
        share_prompts: whether the answers to a prompt share a row, see `responses.shared_response_batch`.
        exact_kl: whether the KL to the reference is summed over the vocabulary, besides being estimated.
    """

    def judge(
        trained: Mapping[str, Params],
        frozen: Mapping[str, Params],
        prompts: PromptBatch,
        samples: Samples,
        hyper: Hyper,
    ) -> Experience:
        each = jax.tree.map(lambda leaf: jnp.repeat(leaf, answers, axis=0), prompts)
        batch = shared_response_batch(prompts, samples) if share_prompts else response_batch(each, samples)
        rows = batch.tokens.shape[0]
        whole = None if scorer is None else _stack(scorer_batch(each, samples), rows)

        def logprobs(params: Params | None, batch: TokenBatch) -> jax.Array | None:
            if policy is None or params is None:
                return None
            return token_logprobs(policy, params, batch, temperature=hyper["temperature"])[0].logp

        def kl(batch: TokenBatch) -> jax.Array | None:
            if policy is None or not exact_kl:
                return None
            params, reference, heat = trained["policy"], frozen["reference"], hyper["temperature"]
            return token_logprobs(policy, params, batch, want=["kl"], temperature=heat, ref_params=reference)[0].kl

        def scores(whole: TokenBatch | None) -> dict[str, jax.Array]:
            if scorer is None or whole is None:
                return {}
            scores = sequence_scores(scorer, frozen["scorer"], flat_answers(whole))
            return {"reward_model": scores.reshape(whole.tokens.shape[:2])}

        def one(part: tuple[TokenBatch, TokenBatch | None]) -> dict[str, Any]:
            batch, whole = part
            return {
                # Apart from the KL, which would be one program with it: the ratio of the first update is exactly 1
                # because this is the program of the update.
                "logprobs": logprobs(trained["policy"], batch),
                "ref_logprobs": logprobs(frozen.get("reference"), batch),
                "kl": kl(batch),
                "values": None if critic is None else token_values(critic, trained["critic"], batch),
                "scores": scores(whole),
            }

        parts = max(1, samples.mask.shape[0] // rows_at_once)
        said = one((batch, whole)) if parts == 1 else join_rows(jax.lax.map(one, split_rows((batch, whole), parts)))
        own = {name: values.reshape(-1) for name, values in said.pop("scores").items()}
        said = jax.tree.map(lambda leaf: leaf.reshape(samples.mask.shape), said)
        return Experience(batch=batch, samples=samples, scores=own, **said)

    return judge


def total_scores(experience: Experience, weights: Mapping[str, float] | None = None) -> tuple[jax.Array, jax.Array]:
    """Adds up what the rewards say of each answer.

    Args:
        experience: what `make_judge` made.
        weights: name of a reward -> its weight; None, and names that it does not have, mean 1. What weighs 0 is only
            reported, and its opinion does not count as one.

    Returns:
        [B] float32, the weighted sum of the rewards that have an opinion, 0 where none has; and [B] bool, whether any
        has, on an answer to a real prompt.
    """
    weighted = [((weights or {}).get(name, 1.0), own) for name, own in experience.scores.items()]
    known = jnp.stack([jnp.isfinite(own) & (weight != 0) for weight, own in weighted])
    parts = jnp.stack([weight * own for weight, own in weighted])
    return masked_sum(parts, known, axis=0), jnp.any(known, axis=0) & has_prompt(experience)


def token_kl(experience: Experience) -> jax.Array:
    """[B, R] KL to the reference of each token: exact where that was computed, else the estimate k1."""
    if experience.kl is not None:
        return experience.kl
    assert experience.logprobs is not None and experience.ref_logprobs is not None
    return kl_estimate(experience.logprobs, experience.ref_logprobs, "k1")


def group_metrics(groups: jax.Array, valid: jax.Array) -> Metrics:
    """Metrics of the scores of several answers to each prompt.

    Args:
        groups: [P, K] float32, total scores.
        valid: [P, K] bool, which answers have one.

    Returns:
        `reward`, `reward_std` (of a group, on average), `frac_reward_zero_std` (the share of groups that teach nothing
        because all rewards are equal).
    """
    deviations, scored = group_std(groups, valid), jnp.any(valid, axis=1)
    return {
        "reward": mean_of(groups, valid),
        "reward_std": mean_of(deviations, scored),
        "frac_reward_zero_std": mean_of(deviations == 0.0, scored),
    }


def sample_metrics(experience: Experience, there: jax.Array) -> Metrics:
    """Metrics of the answers themselves, and of each reward.

    Args:
        experience: what `make_judge` made.
        there: [B] bool, which answers have a score.

    Returns:
        `objective/kl` of an answer if there is a reference, `rewards/<name>/mean`, `objective/unscored`,
        `val/num_eos_tokens`, `completions/*`, `num_tokens`, and `sampling/*` if answers are not only scored.
    """
    samples, real = experience.samples, has_prompt(experience)
    lengths = jnp.sum(samples.mask, axis=1)
    return {
        **_logprob_metrics(experience, real),
        **{f"rewards/{name}/mean": mean_of(own, real & jnp.isfinite(own)) for name, own in experience.scores.items()},
        "objective/unscored": Sum(jnp.sum(real & ~there, dtype=jnp.float32)),
        "val/num_eos_tokens": Mean(jnp.sum(samples.terminated & real, dtype=jnp.float32), jnp.ones(())),
        "completions/mean_length": mean_of(lengths, real),
        "completions/min_length": min_of(lengths, real),
        "completions/max_length": max_of(lengths, real),
        "completions/clipped_ratio": mean_of(~samples.terminated, real),
        "num_tokens": num_tokens(experience.batch),
    }


def _logprob_metrics(experience: Experience, real: jax.Array) -> Metrics:
    samples, metrics = experience.samples, {}
    if experience.ref_logprobs is not None:
        metrics["objective/kl"] = mean_of(masked_sum(token_kl(experience), samples.mask, axis=1), real)
    if experience.logprobs is not None:
        difference = jnp.abs(samples.sampling_logprobs - experience.logprobs)
        metrics["sampling/sampling_logp_difference/mean"] = mean_of(difference, samples.mask & real[:, None])
        metrics["sampling/sampling_logp_difference/max"] = max_of(difference, samples.mask & real[:, None])
    return metrics


def has_prompt(experience: Experience) -> jax.Array:
    """[B] bool, False at rows that are padding."""
    rows = jnp.any(experience.batch.segment_ids != 0, axis=1)
    return jnp.repeat(rows, experience.samples.mask.shape[0] // rows.shape[0])


def _stack(batch: TokenBatch, rows: int) -> TokenBatch:
    """The answers to a prompt beneath each other: leaves [B * K, ...] become [B, K, ...]."""
    return jax.tree.map(lambda leaf: leaf.reshape(rows, -1, *leaf.shape[1:]), batch)
