"""GRPO: from scores of groups of answers to a `Rollout`, and the loss of the policy on it, as one program."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrlhf.losses import (
    fixed_length_mean,
    group_advantages,
    grpo_loss,
    kl_estimate,
    masked_mean,
    sequence_mean,
    unbiased_kl,
)
from jaxrlhf.losses.grpo import Baseline, Scale
from jaxrlhf.ops.masked import masked_sum
from jaxrlhf.ops.stats import mean_of
from jaxrlhf.steps.adapters import WHOLE, Bases, loss_over
from jaxrlhf.steps.epochs import visit_rows
from jaxrlhf.steps.experience import Experience, LearnFn, States, group_metrics, sample_metrics, total_scores
from jaxrlhf.steps.scoring import token_loss
from jaxrlhf.steps.update import LossFn, make_update
from jaxrlhf.types import Hyper, LogprobOut, Metrics, Model, Params, Rollout, TrainState

Reduction = Literal["grpo", "dapo", "dr_grpo", "bnpo"]
KLTerm = Literal["unbiased", "k1", "k2", "k3", "exact"]


class Totals(NamedTuple):
    """Counts of an update: response tokens, answers that have one, and rows."""

    tokens: jax.Array
    answers: jax.Array
    rows: float


def rollout_totals(rollout: Rollout) -> Totals:
    """The counts that the averages divide by."""
    mask = rollout.mask
    answers = jnp.any(mask, axis=-1)
    return Totals(jnp.sum(mask, dtype=jnp.float32), jnp.sum(answers, dtype=jnp.float32), rows=float(answers.size))


REDUCTIONS: dict[Reduction, Callable[[jax.Array, jax.Array, Totals], jax.Array]] = {
    "grpo": lambda costs, mask, totals: sequence_mean(costs, mask, totals.answers),
    "dapo": lambda costs, mask, totals: masked_mean(costs, mask, totals.tokens),
    "dr_grpo": lambda costs, mask, totals: fixed_length_mean(costs, mask, mask.shape[1], totals.answers),
    # A token mean of each micro-batch, and the mean of those: the one reduction that depends on how rows are cut.
    "bnpo": lambda costs, mask, totals: masked_mean(costs, mask) * (mask.shape[0] / totals.rows),
}
"""How costs [B, T] become the loss: the name that TRL gives it -> function of costs, mask and totals."""


def policy_loss(model: Model, *, reduction: Reduction, kl: KLTerm | None) -> LossFn:
    """The `loss_fn` of the policy; reads `temperature`, `clip_low`, `clip_high` and `kl_coef` of `hyper`.

    Args:
        model: the policy.
        reduction: one of `REDUCTIONS`.
        kl: the KL term of the loss, or None for no penalty. "unbiased" is `losses.unbiased_kl`; "exact" sums over the
            vocabulary and reads the reference's parameters, `frozen["reference"]`; for "k1", "k2", "k3" see
            `losses.kl_estimate`.
    """

    def loss_fn(
        params: Params,
        frozen: Mapping[str, Params],
        batch: Rollout,
        totals: Totals,
        hyper: Hyper,
        key: jax.Array | None,
    ) -> tuple[jax.Array, Metrics]:
        exact = kl == "exact"
        tokens = _Tokens(
            mask=batch.mask,
            logprobs=batch.logprobs,
            ref_logprobs=batch.ref_logprobs,
            advantages=jnp.broadcast_to(batch.advantages[..., None], batch.mask.shape),
            weights=token_weights(reduction, batch.mask, totals),
        )
        return token_loss(
            model,
            params,
            batch.batch,
            functools.partial(_of_tokens, kl),
            aux=tokens,
            given=_Given(hyper["clip_low"], hyper["clip_high"], hyper["kl_coef"]),
            want=("logp", "entropy", "kl") if exact else ("logp", "entropy"),
            temperature=hyper["temperature"],
            ref_params=frozen["reference"] if exact else None,
            key=key,
        )

    return loss_fn


def token_weights(reduction: Reduction, mask: jax.Array, totals: Totals) -> jax.Array:
    """[..., T] weights of tokens in one of `REDUCTIONS`, all of which are linear: sum(weights * costs) is the loss."""
    flat = mask.reshape(-1, mask.shape[-1])
    return jax.grad(lambda costs: REDUCTIONS[reduction](costs, flat, totals))(jnp.zeros(flat.shape)).reshape(mask.shape)


class _Tokens(NamedTuple):
    """What the policy's loss reads of each response token, [B, R] or [B, K, R]; see `Rollout`, `token_weights`."""

    mask: jax.Array
    logprobs: jax.Array
    ref_logprobs: jax.Array | None
    advantages: jax.Array
    weights: jax.Array


class _Given(NamedTuple):
    """What it reads besides, numbers of `hyper`."""

    clip_low: jax.Array
    clip_high: jax.Array
    kl_coef: jax.Array


def _of_tokens(
    kl: KLTerm | None, out: LogprobOut, mask: jax.Array, tokens: _Tokens, given: _Given
) -> tuple[jax.Array, Metrics]:
    assert out.logp is not None and out.entropy is not None
    mask = mask & tokens.mask
    loss, metrics = grpo_loss(
        out.logp,
        tokens.logprobs,
        tokens.advantages,
        mask,
        clip_low=given.clip_low,
        clip_high=given.clip_high,
        kl=out.kl if kl is None or kl == "exact" else _estimated_kl(kl, out.logp, tokens),
        kl_coef=None if kl is None else given.kl_coef,
        average=lambda costs, mask: masked_sum(tokens.weights * costs, mask),
    )
    return loss, {**metrics, "entropy": mean_of(out.entropy, mask)}


def make_rollout(
    experience: Experience,
    *,
    answers: int,
    baseline: Baseline,
    scale: Scale,
    weights: Mapping[str, float] | None = None,
) -> tuple[Rollout, Metrics]:
    """Estimates advantages within groups.

    An answer that no reward has an opinion on, and a row without a prompt (padding), are in no group and teach nothing.

    Args:
        experience: what `make_judge` made; the answers to a prompt are neighbours.
        answers: answers to each prompt, G.
        baseline: see `losses.group_advantages`.
        scale: see `losses.group_advantages`.
        weights: of the rewards; see `experience.total_scores`.

    Returns:
        The `Rollout`, and the metrics of `experience.group_metrics` and `experience.sample_metrics`. Arrays are
        [B, K, R] where the answers to a prompt share its row.
    """
    scores, there = total_scores(experience, weights)
    groups, valid = scores.reshape(-1, answers), there.reshape(-1, answers)
    advantages = group_advantages(groups, valid, baseline=baseline, scale=scale).reshape(-1)
    assert experience.logprobs is not None and experience.batch.columns is not None
    shape = experience.batch.columns.shape
    rollout = Rollout(
        batch=experience.batch,
        mask=(experience.samples.mask & there[:, None]).reshape(shape),
        logprobs=experience.logprobs.reshape(shape),
        ref_logprobs=None if experience.ref_logprobs is None else experience.ref_logprobs.reshape(shape),
        advantages=advantages.reshape(shape[:-1]),
    )
    return rollout, {**group_metrics(groups, valid), **sample_metrics(experience, there)}


def make_learn(
    policy: Model,
    optimizer: optax.GradientTransformation,
    *,
    answers: int,
    baseline: Baseline,
    scale: Scale,
    reduction: Reduction,
    kl: KLTerm | None,
    epochs: int,
    mini_batches: int,
    micro_batches: int,
    seed: int,
    weights: Mapping[str, float] | None = None,
    bases: Bases = WHOLE,
) -> LearnFn:
    """Builds the `experience.LearnFn` of GRPO: one rollout, all its updates, one program; its state is the "policy".

    Args:
        policy: the policy.
        optimizer: direction of the updates; the rate is `learning_rate` of `hyper`.
        answers: answers to each prompt.
        baseline: see `losses.group_advantages`.
        scale: see `losses.group_advantages`.
        reduction: see `policy_loss`.
        kl: see `policy_loss`.
        epochs: passes over the rollout.
        mini_batches: updates in an epoch; divides the rows.
        micro_batches: parts of an update; divides the rows of a mini-batch.
        seed: of the order and of dropout.
        weights: of the rewards; see `experience.total_scores`.
        bases: of the policy, if its parameters are adapters, and of the reference; see `adapters.everyone`.
    """
    loss = loss_over(policy_loss(policy, reduction=reduction, kl=kl), "policy", bases)
    update = make_update(loss, rollout_totals, optimizer, micro_batches=micro_batches, seed=seed)

    def learn(
        states: States, frozen: Mapping[str, Params], experience: Experience, hyper: Hyper
    ) -> tuple[States, Metrics]:
        rollout, metrics = make_rollout(experience, answers=answers, baseline=baseline, scale=scale, weights=weights)
        key = jax.random.fold_in(jax.random.key(seed), states.models["policy"].step)

        def one(state: TrainState, part: Rollout, beside: None) -> tuple[TrainState, Metrics]:
            del beside
            return update(state, frozen, part, hyper)

        state, train_metrics = visit_rows(
            one, states.models["policy"], rollout, key, epochs=epochs, mini_batches=mini_batches
        )
        return States({"policy": state}), {**metrics, **train_metrics}

    return learn


def _estimated_kl(kind: Any, logprobs: jax.Array, tokens: _Tokens) -> jax.Array:
    assert tokens.ref_logprobs is not None
    if kind == "unbiased":
        return unbiased_kl(logprobs, tokens.ref_logprobs, tokens.logprobs)
    return kl_estimate(logprobs, tokens.ref_logprobs, kind)
