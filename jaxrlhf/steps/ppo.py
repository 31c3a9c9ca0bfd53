"""PPO: the losses of policy and critic on a `Rollout`, and the epochs over it as one program."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxrlhf.losses import ppo_policy_loss, ppo_value_loss
from jaxrlhf.ops.stats import mean_of, reduce_stacked
from jaxrlhf.steps.rollout import Experience, make_rollout
from jaxrlhf.steps.scoring import token_logprobs, token_values
from jaxrlhf.steps.update import LossFn, make_update
from jaxrlhf.types import Hyper, Metrics, Model, Params, Rollout, TrainState

States = dict[str, TrainState]
"""The models that are trained, "policy" and "critic"."""

LearnFn = Callable[[States, Experience, Hyper], tuple[States, Metrics]]


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
        values = token_values(model, params, batch.batch, key=key)
        return ppo_value_loss(
            values, batch.values, batch.returns, batch.mask, clip_eps=hyper["value_clip_eps"], denom=totals
        )

    return loss_fn


def rollout_totals(rollout: Rollout) -> jax.Array:
    """The number of response tokens."""
    return jnp.sum(rollout.mask, dtype=jnp.float32)


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
) -> LearnFn:
    """Builds `learn(states, experience, hyper) -> (states, metrics)`: one rollout, all its updates, one program.

    Every epoch visits all rows in `mini_batches` updates of both models: the first in the order in which they were
    sampled, which is random already, later ones in an order drawn from (seed, step, epoch).

    Args:
        policy: the policy.
        critic: a model with a scalar head.
        optimizer: direction of the updates; the rates are `learning_rate` and `critic_learning_rate` of `hyper`.
        whiten_rewards: see `make_rollout`.
        epochs: passes over the rollout.
        mini_batches: updates in an epoch; divides the rows.
        micro_batches: parts of an update; divides the rows of a mini-batch.
        seed: of the order and of dropout.
    """
    update_policy = make_update(policy_loss(policy), rollout_totals, optimizer, micro_batches=micro_batches, seed=seed)
    update_critic = make_update(value_loss(critic), rollout_totals, optimizer, micro_batches=micro_batches, seed=seed)

    def learn(states: States, experience: Experience, hyper: Hyper) -> tuple[States, Metrics]:
        rollout, metrics = make_rollout(experience, hyper, whiten_rewards=whiten_rewards)
        critic_hyper = {**hyper, "learning_rate": hyper["critic_learning_rate"]}
        key = jax.random.fold_in(jax.random.key(seed), states["policy"].step)

        def update(states: States, rows: jax.Array) -> tuple[States, Metrics]:
            part = jax.tree.map(lambda leaf: leaf[rows], rollout)
            policy_state, metrics = update_policy(states["policy"], None, part, hyper)
            critic_state, critic_metrics = update_critic(states["critic"], None, part, critic_hyper)
            return {"policy": policy_state, "critic": critic_state}, {**metrics, **_renamed(critic_metrics)}

        order = _row_order(key, rollout.mask.shape[0], epochs, mini_batches)
        states, train_metrics = jax.lax.scan(update, states, order)
        return states, {**metrics, **reduce_stacked(train_metrics)}

    return learn


def _row_order(key: jax.Array, rows: int, epochs: int, mini_batches: int) -> jax.Array:
    """[epochs * mini_batches, rows / mini_batches] row numbers."""
    shuffled = jax.vmap(lambda k: jax.random.permutation(k, rows))(jax.random.split(key, epochs))
    order = shuffled.at[0].set(jnp.arange(rows)).reshape(epochs, rows // mini_batches, mini_batches)
    # Update i takes rows i, i + mini_batches, ... of the order, as `split_rows` does: what was scored together is
    # updated together, and each device gives its share.
    return jnp.swapaxes(order, 1, 2).reshape(epochs * mini_batches, rows // mini_batches)


def _renamed(metrics: Metrics) -> Metrics:
    """The critic's `grad_norm` and `skipped` stand beside the policy's under names of their own."""
    own = {"grad_norm": "critic/grad_norm", "skipped": "critic/skipped"}
    return {own.get(name, name): metric for name, metric in metrics.items()}
