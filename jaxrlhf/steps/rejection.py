"""Rejection-sampling fine-tuning: the best answers to each prompt, and the language-model loss on them alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax

from jaxrlhf.losses import best_of_group
from jaxrlhf.ops.stats import mean_of
from jaxrlhf.steps.adapters import WHOLE, Bases, loss_over
from jaxrlhf.steps.epochs import visit_rows
from jaxrlhf.steps.experience import Experience, LearnFn, States, group_metrics, sample_metrics, total_scores
from jaxrlhf.steps.sft import sft_loss, sft_totals
from jaxrlhf.steps.update import make_update, update_if
from jaxrlhf.types import Hyper, Metrics, Model, Params, TokenBatch, TrainState


def choose(
    experience: Experience,
    *,
    answers: int,
    keep: int,
    min_score: float | None = None,
    weights: Mapping[str, float] | None = None,
) -> tuple[TokenBatch, Metrics]:
    """Takes the best answers to each prompt.

    An answer that no reward has an opinion on, and a row without a prompt (padding), are never taken.

    Args:
        experience: what `make_judge` made; the answers to a prompt are neighbours.
        answers: answers to each prompt, K.
        keep: answers to take, from 1 to K.
        min_score: an answer that scores less is not taken; None takes any.
        weights: of the rewards; see `experience.total_scores`.

    Returns:
        `TokenBatch` of `keep` rows a prompt, all padding to the loss where there is no answer to take; and metrics
        `reward/best`, the mean score of those taken, `rejection/kept`, the share of places that are filled, and those
        of `experience.group_metrics` and `experience.sample_metrics`.
    """
    scores, there = total_scores(experience, weights)
    groups, valid = scores.reshape(-1, answers), there.reshape(-1, answers)
    good = valid if min_score is None else valid & (groups >= min_score)
    chosen, kept = best_of_group(groups, good, keep)

    def take(leaf: jax.Array) -> jax.Array:
        # Within each group, so that the rows of a device stay on it.
        grouped = leaf.reshape(-1, answers, *leaf.shape[1:])
        index = chosen.reshape(*chosen.shape, *(1 for _ in leaf.shape[1:]))
        return jnp.take_along_axis(grouped, index, axis=1).reshape(-1, *leaf.shape[1:])

    batch = jax.tree.map(take, experience.batch)
    scored = jnp.broadcast_to(jnp.any(valid, axis=1, keepdims=True), kept.shape)
    return dataclasses.replace(batch, mask=batch.mask & kept.reshape(-1, 1)), {
        **group_metrics(groups, valid),
        "reward/best": mean_of(jnp.take_along_axis(groups, chosen, axis=1), kept),
        "rejection/kept": mean_of(kept, scored),
        **sample_metrics(experience, there),
    }


def make_learn(
    policy: Model,
    optimizer: optax.GradientTransformation,
    *,
    answers: int,
    keep: int,
    min_score: float | None,
    epochs: int,
    mini_batches: int,
    micro_batches: int,
    seed: int,
    weights: Mapping[str, float] | None = None,
    bases: Bases = WHOLE,
) -> LearnFn:
    """Builds the `experience.LearnFn` of rejection sampling: its updates see the rows that were taken and no others.

    An update for which no row is left is not made: a gradient of zeros would still move the policy, by momentum and
    weight decay.

    Args:
        policy: the policy.
        optimizer: direction of the updates; the rate is `learning_rate` of `hyper`.
        answers: see `choose`.
        keep: see `choose`.
        min_score: see `choose`.
        epochs: passes over the answers that were taken.
        mini_batches: updates in an epoch; divides `keep` times the prompts.
        micro_batches: parts of an update; divides the rows of a mini-batch.
        seed: of the order and of dropout.
        weights: of the rewards; see `experience.total_scores`.
        bases: of the policy, if its parameters are adapters; see `adapters.everyone`.
    """
    loss = loss_over(sft_loss(policy), "policy", bases)
    update = make_update(loss, sft_totals, optimizer, micro_batches=micro_batches, seed=seed)

    def learn(
        states: States, frozen: Mapping[str, Params], experience: Experience, hyper: Hyper
    ) -> tuple[States, Metrics]:
        batch, metrics = choose(experience, answers=answers, keep=keep, min_score=min_score, weights=weights)
        key = jax.random.fold_in(jax.random.key(seed), states.models["policy"].step)

        def one(state: TrainState, part: TokenBatch, beside: None) -> tuple[TrainState, Metrics]:
            del beside
            return update_if(sft_totals(part) > 0, update, state, frozen, part, hyper)

        state, train_metrics = visit_rows(
            one, states.models["policy"], batch, key, epochs=epochs, mini_batches=mini_batches
        )
        return States({"policy": state}), {**train_metrics, **metrics}  # tokens are those of all answers, once

    return learn
