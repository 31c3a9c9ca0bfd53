"""PPO: the losses of policy and critic on a `Rollout`, and all updates on it as one program."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrlhf.losses import lm_loss, ppo_policy_loss, ppo_value_loss
from jaxrlhf.ops.masked import masked_mean
from jaxrlhf.ops.stats import Mean, mean_of
from jaxrlhf.steps.adapters import WHOLE, Bases, loss_over
from jaxrlhf.steps.epochs import visit_rows
from jaxrlhf.steps.experience import Experience, LearnFn, States
from jaxrlhf.steps.scoring import token_loss, token_values
from jaxrlhf.steps.sft import sft_totals
from jaxrlhf.steps.shaping import Normalize, adapt, make_rollout, observe
from jaxrlhf.steps.update import LossFn, make_update, split_rows, update_if
from jaxrlhf.types import Hyper, LogprobOut, Metrics, Model, Params, Rollout, TokenBatch, TrainState


class PolicyBatch(NamedTuple):
    """What the policy learns from in one update.

    Attributes:
        rollout: a part of the rollout.
        pretraining: other rows, or None.
    """

    rollout: Rollout
    pretraining: TokenBatch | None = None


class PolicyTotals(NamedTuple):
    """Tokens of an update that are trained: of the rollout, and of the other rows if there are any."""

    rollout: jax.Array
    pretraining: jax.Array | None


def policy_loss(model: Model) -> LossFn:
    """The `loss_fn` of the policy, on a `PolicyBatch`; nothing frozen.

    It adds up PPO's loss, the entropy bonus of Schulman et al. 2017, eq. 9 (`entropy_coef` of `hyper`), and, if there
    are other rows, their LM loss (`ptx_coef`; PPO-ptx of Ouyang et al. 2022, eq. 2), each a token mean of its own. It
    reads `temperature` and `clip_eps` too.
    """

    def loss_fn(
        params: Params, frozen: Any, batch: PolicyBatch, totals: PolicyTotals, hyper: Hyper, key: jax.Array | None
    ) -> tuple[jax.Array, Metrics]:
        del frozen
        loss, metrics = token_loss(
            model,
            params,
            batch.rollout.batch,
            _of_tokens,
            aux=_Tokens(batch.rollout.mask, batch.rollout.logprobs, batch.rollout.advantages),
            given=_Given(totals.rollout, hyper["clip_eps"], hyper["entropy_coef"]),
            want=("logp", "entropy"),
            temperature=hyper["temperature"],
            key=key,
        )
        if batch.pretraining is not None:
            own = None if key is None else jax.random.fold_in(key, 1)
            ptx, ptx_metrics = token_loss(model, params, batch.pretraining, _of_text, given=totals.pretraining, key=own)
            loss += hyper["ptx_coef"] * ptx
            metrics |= {"loss/ptx_avg": ptx_metrics["loss"]}
        return loss, metrics

    return loss_fn


class _Tokens(NamedTuple):
    """What the policy's loss reads of each response token, [B, R]; see `Rollout`."""

    mask: jax.Array
    logprobs: jax.Array
    advantages: jax.Array


class _Given(NamedTuple):
    """What it reads besides: the number of tokens of the update, and numbers of `hyper`."""

    tokens: jax.Array
    clip_eps: jax.Array
    entropy_coef: jax.Array


def _of_tokens(out: LogprobOut, mask: jax.Array, tokens: _Tokens, given: _Given) -> tuple[jax.Array, Metrics]:
    assert out.logp is not None and out.entropy is not None
    mask = mask & tokens.mask
    loss, metrics = ppo_policy_loss(
        out.logp, tokens.logprobs, tokens.advantages, mask, clip_eps=given.clip_eps, denom=given.tokens
    )
    loss -= given.entropy_coef * masked_mean(out.entropy, mask, given.tokens)
    return loss, {**metrics, "policy/entropy_avg": mean_of(out.entropy, mask)}


def _of_text(out: LogprobOut, mask: jax.Array, aux: None, totals: jax.Array) -> tuple[jax.Array, Metrics]:
    del aux
    assert out.logp is not None
    return lm_loss(out.logp, mask, denom=totals)


def policy_totals(batch: PolicyBatch) -> PolicyTotals:
    """The counts that the averages of the policy's loss divide by."""
    others = batch.pretraining
    return PolicyTotals(rollout_totals(batch.rollout), None if others is None else sft_totals(others))


def value_loss(model: Model) -> LossFn:
    """The `loss_fn` of the critic, on a `Rollout`; nothing frozen; reads `value_clip_eps` of `hyper`."""

    def loss_fn(
        params: Params, frozen: Any, batch: Rollout, totals: jax.Array, hyper: Hyper, key: jax.Array | None
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


class _Learners(NamedTuple):
    """What updates change: both models, and whether the policy rests for what is left of the rollout."""

    policy: TrainState
    critic: TrainState
    rests: jax.Array


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
    normalize: Normalize = "none",
    may_rest: bool = False,
    weights: Mapping[str, float] | None = None,
    bases: Bases = WHOLE,
) -> LearnFn:
    """Builds the `experience.LearnFn` of PPO: one rollout, all its updates, one program.

    Every epoch visits all rows in `mini_batches` updates of both models; see `visit_rows`. Its fifth argument are other
    rows, or None: each update of the policy takes as many of them, and none is taken twice.

    `hyper` has what `make_rollout`, `policy_loss`, `value_loss` and, if the price of a nat adapts, `shaping.adapt`
    read, and the rates `learning_rate` and `critic_learning_rate`.

    Args:
        policy: the policy.
        critic: a model with a scalar head.
        optimizer: direction of the updates.
        whiten_rewards: see `make_rollout`.
        epochs: passes over the rollout.
        mini_batches: updates in an epoch; divides the rows.
        micro_batches: parts of an update; divides the rows of a mini-batch.
        seed: of the order and of dropout.
        normalize: see `make_rollout`.
        may_rest: whether updates of the policy may be left out: all where `train_policy` of `hyper` is 0, and those of
            a rollout after one that found the policy's approximate KL to the sampling policy above `early_stop_kl`. The
            critic learns on.
        weights: of the rewards; see `experience.total_scores`.
        bases: of policy and critic, if their parameters are adapters; see `adapters.everyone`.
    """
    loss, critic_loss = loss_over(policy_loss(policy), "policy", bases), loss_over(value_loss(critic), "critic", bases)
    update_policy = make_update(loss, policy_totals, optimizer, micro_batches=micro_batches, seed=seed)
    update_critic = make_update(critic_loss, rollout_totals, optimizer, micro_batches=micro_batches, seed=seed)

    def learn(
        states: States, frozen: Any, experience: Experience, hyper: Hyper, pretraining: TokenBatch | None = None
    ) -> tuple[States, Metrics]:
        running = observe(states.running, experience, weights)
        rollout, metrics = make_rollout(
            experience, hyper, running, whiten_rewards=whiten_rewards, normalize=normalize, weights=weights
        )
        critic_hyper = {**hyper, "learning_rate": hyper["critic_learning_rate"]}
        models = states.models
        key = jax.random.fold_in(jax.random.key(seed), models["policy"].step)

        def update(now: _Learners, part: Rollout, others: TokenBatch | None) -> tuple[_Learners, Metrics]:
            batch = PolicyBatch(part, others)
            if may_rest:
                goes = ~now.rests & (hyper["train_policy"] > 0)
                state, metrics = update_if(goes, update_policy, now.policy, frozen, batch, hyper)
                rests = now.rests | (metrics["policy/approxkl_avg"].value > hyper["early_stop_kl"])
                metrics["policy/rest_ratio"] = Mean(jnp.where(goes, 0.0, 1.0), jnp.ones(()))
            else:
                state, metrics = update_policy(now.policy, frozen, batch, hyper)
                rests = now.rests
            critic_state, critic_metrics = update_critic(now.critic, frozen, part, critic_hyper)
            return _Learners(state, critic_state, rests), {**metrics, **_renamed(critic_metrics)}

        now, train_metrics = visit_rows(
            update,
            _Learners(models["policy"], models["critic"], jnp.zeros((), bool)),
            rollout,
            key,
            epochs=epochs,
            mini_batches=mini_batches,
            beside=None if pretraining is None else split_rows(pretraining, epochs * mini_batches),
        )
        adapted = adapt(running, experience, hyper)
        if may_rest:  # the price of a policy that may not move would only fall
            adapted = jax.tree.map(lambda new, old: jnp.where(hyper["train_policy"] > 0, new, old), adapted, running)
        return States({"policy": now.policy, "critic": now.critic}, adapted), {**metrics, **train_metrics}

    return learn


def _renamed(metrics: Metrics) -> Metrics:
    """The critic's `grad_norm` and `skipped` stand beside the policy's under names of their own."""
    own = {"grad_norm": "critic/grad_norm", "skipped": "critic/skipped"}
    return {own.get(name, name): metric for name, metric in metrics.items()}
