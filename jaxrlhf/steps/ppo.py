"""PPO: from what everyone says of answers to a `Rollout`, and the losses of policy and critic on it, as one program."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxrlhf.losses import (
    gae,
    kl_estimate,
    kl_shaped_rewards,
    ppo_policy_loss,
    ppo_value_loss,
    whiten,
    whiten_keep_mean,
)
from jaxrlhf.ops.masked import masked_sum
from jaxrlhf.ops.stats import mean_of
from jaxrlhf.steps.epochs import visit_rows
from jaxrlhf.steps.experience import Experience, LearnFn, States, has_prompt, sample_metrics, total_scores
from jaxrlhf.steps.scoring import token_logprobs, token_values
from jaxrlhf.steps.update import LossFn, make_update
from jaxrlhf.types import Hyper, Metrics, Model, Params, Rollout


def policy_loss(model: Model) -> LossFn:
    """The `loss_fn` of the policy; nothing frozen; reads `temperature` and `clip_eps` of `hyper`."""

    def loss_fn(
        params: Params, frozen: Any, batch: Rollout, totals: jax.Array, hyper: Hyper, key: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        del frozen
        out, _ = token_logprobs(
            model, params, batch.batch, want=("logp", "entropy"), temperature=hyper["temperature"], key=key
        )
        assert out.logp is not None and out.entropy is not None
        loss, metrics = ppo_policy_loss(
            out.logp, batch.logprobs, batch.advantages, batch.mask, clip_eps=hyper["clip_eps"], denom=totals
        )
        return loss, {**metrics, "policy/entropy_avg": mean_of(out.entropy, batch.mask)}

    return loss_fn


def value_loss(model: Model) -> LossFn:
    """The `loss_fn` of the critic; nothing frozen; reads `value_clip_eps` of `hyper`."""

    def loss_fn(
        params: Params, frozen: Any, batch: Rollout, totals: jax.Array, hyper: Hyper, key: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        del frozen
        assert batch.values is not None and batch.returns is not None
        values = token_values(model, params, batch.batch, key=key)
        return ppo_value_loss(
            values, batch.values, batch.returns, batch.mask, clip_eps=hyper["value_clip_eps"], denom=totals
        )

    return loss_fn


def rollout_totals(rollout: Rollout) -> jax.Array:
    """The number of response tokens."""
    return jnp.sum(rollout.mask, dtype=jnp.float32)


def make_rollout(
    experience: Experience, hyper: Hyper, *, whiten_rewards: bool, weights: Mapping[str, float] | None = None
) -> tuple[Rollout, Metrics]:
    """Shapes rewards and estimates advantages over the whole batch.

    An answer that no reward has an opinion on, and a row without a prompt (padding), teach nothing.

    Args:
        experience: what `make_judge` made.
        hyper: reads `kl_coef`, `gamma`, `lam`, and `missing_eos_penalty`, which is subtracted from the score of an
            answer that was cut off.
        whiten_rewards: whether the shaped rewards are scaled to variance 1 before GAE.
        weights: of the rewards; see `experience.total_scores`.

    Returns:
        The `Rollout`, and metrics `objective/*`, `rewards/*`, `completions/*`, `val/num_eos_tokens`, `num_tokens`.
    """
    samples = experience.samples
    assert experience.ref_logprobs is not None and experience.values is not None
    scores, there = total_scores(experience, weights)
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
    real = has_prompt(experience)
    sequence_kl = masked_sum(kl, samples.mask, axis=1)
    non_score = -hyper["kl_coef"] * sequence_kl
    return rollout, {
        "objective/entropy": mean_of(masked_sum(-experience.logprobs, samples.mask, axis=1), real),
        "objective/non_score_reward": mean_of(non_score, there),
        "objective/rlhf_reward": mean_of(shaped_scores + non_score, there),
        "objective/scores": mean_of(scores, there),
        **sample_metrics(experience, there),
    }


def make_learn(
    policy: Model,
    critic: Model,
    optimizer: optax.GradientTransformation,
    *,
    whiten_rewards: bool,
    epochs: int,
    mini_batches: int,
    micro_batches: int,
    seed: int,
    weights: Mapping[str, float] | None = None,
) -> LearnFn:
    """Builds the `experience.LearnFn` of PPO: one rollout, all its updates, one program.

    Every epoch visits all rows in `mini_batches` updates of both models; see `visit_rows`.

    Args:
        policy: the policy.
        critic: a model with a scalar head.
        optimizer: direction of the updates; the rates are `learning_rate` and `critic_learning_rate` of `hyper`.
        whiten_rewards: see `make_rollout`.
        epochs: passes over the rollout.
        mini_batches: updates in an epoch; divides the rows.
        micro_batches: parts of an update; divides the rows of a mini-batch.
        seed: of the order and of dropout.
        weights: of the rewards; see `experience.total_scores`.
    """
    update_policy = make_update(policy_loss(policy), rollout_totals, optimizer, micro_batches=micro_batches, seed=seed)
    update_critic = make_update(value_loss(critic), rollout_totals, optimizer, micro_batches=micro_batches, seed=seed)

    def learn(states: States, frozen: Any, experience: Experience, hyper: Hyper) -> tuple[States, Metrics]:
        del frozen  # the reference has had its say in the experience
        rollout, metrics = make_rollout(experience, hyper, whiten_rewards=whiten_rewards, weights=weights)
        critic_hyper = {**hyper, "learning_rate": hyper["critic_learning_rate"]}
        key = jax.random.fold_in(jax.random.key(seed), states["policy"].step)

        def update(states: States, part: Rollout) -> tuple[States, Metrics]:
            policy_state, metrics = update_policy(states["policy"], None, part, hyper)
            critic_state, critic_metrics = update_critic(states["critic"], None, part, critic_hyper)
            return {"policy": policy_state, "critic": critic_state}, {**metrics, **_renamed(critic_metrics)}

        states, train_metrics = visit_rows(update, states, rollout, key, epochs=epochs, mini_batches=mini_batches)
        return states, {**metrics, **train_metrics}

    return learn


def _renamed(metrics: Metrics) -> Metrics:
    """The critic's `grad_norm` and `skipped` stand beside the policy's under names of their own."""
    own = {"grad_norm": "critic/grad_norm", "skipped": "critic/skipped"}
    return {own.get(name, name): metric for name, metric in metrics.items()}
