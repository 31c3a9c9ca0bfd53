"""PPO with a KL penalty to a frozen reference: `run(config)`."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import jax.numpy as jnp

from jaxrlhf.data.config import DatasetConfig
from jaxrlhf.data.loader import Loader
from jaxrlhf.models.decoder import make_model
from jaxrlhf.ops.moments import no_moments
from jaxrlhf.rewards.functions import RewardFn
from jaxrlhf.sharding.mesh import check_batch
from jaxrlhf.sharding.place import place_replicated
from jaxrlhf.steps.experience import Experience, States
from jaxrlhf.steps.ppo import make_learn
from jaxrlhf.steps.shaping import Running, make_rollout
from jaxrlhf.trainers.adapters import bases_of, divide
from jaxrlhf.trainers.judges import Judges, make_prompt_loaders, name_judges, take_judges
from jaxrlhf.trainers.play import improve, make_game
from jaxrlhf.trainers.ppo_config import PPOConfig, PPOOptions, PTXConfig
from jaxrlhf.trainers.rows import Rows, make_pretraining_loader
from jaxrlhf.trainers.run import Run, Trained, open_run
from jaxrlhf.trainers.start import (
    Start,
    check_same_tokens,
    load_start,
    scalar_start,
    take_reference,
    take_start,
)
from jaxrlhf.trainers.state import first_state, make_optimizer, rate_at
from jaxrlhf.types import Hyper, Metrics

log = logging.getLogger(__name__)

SLUGGISH = 2.0
"""An adaptive price of a nat that cannot change by this factor in a whole run is warned of."""


def run(
    config: PPOConfig,
    *,
    model: Start | None = None,
    reference: Start | None = None,
    reward_model: Start | None = None,
    dataset: Rows | None = None,
    eval_dataset: Rows | None = None,
    ptx_dataset: Rows | None = None,
    rewards: Sequence[RewardFn] = (),
) -> Trained:
    """Trains a policy against a reward.

    Args:
        config: what to do.
        model: a policy in memory, in place of `config.model`.
        reference: a reference in memory, in place of `config.reference`.
        reward_model: a reward model in memory, in place of `config.reward_model`.
        dataset: prompts in memory, in place of `config.dataset`.
        eval_dataset: prompts in memory, in place of `config.eval_dataset`.
        ptx_dataset: texts or demonstrations in memory, in place of `config.ptx.dataset`.
        rewards: Python rewards, besides those that `config.rewards` names; see `rewards.functions`.

    Returns:
        The trained policy and where it was written.

    Raises:
        ValueError: if nothing gives a reward, models do not fit together, or an option has no effect.
    """
    functions, weights = name_judges(config, rewards, reward_model)
    options, optimizer = config.ppo, make_optimizer(config.optim)
    with open_run(config) as job:
        policy = take_start(config.model, model, job.mesh, dtype=config.lora.base)
        params, base = divide(job, policy)
        judges = take_judges(config, job, policy, reward_model, functions, weights)
        named = take_reference(config.reference, reference, policy, config.lora, job.mesh, model=config.model)
        critic, under_critic = _take_critic(config, job, policy, judges)
        critic_params, critic_base = divide(job, critic, what="critic", salt=1)
        train, held_out = make_prompt_loaders(config, job, policy, judges, dataset, eval_dataset, critic=critic)
        if options.critic_warmup_steps >= job.total:
            raise ValueError(
                f"ppo.critic_warmup_steps={options.critic_warmup_steps} leaves the policy none of the {job.total} "
                "steps; lower it"
            )
        _warn_of_a_sluggish_price(config, job.total)
        pretraining = _take_pretraining(config, job, policy, ptx_dataset)
        frozen = {**judges.frozen, **named, **base}
        bases = bases_of(frozen, "policy", "reference")
        if base:
            frozen.setdefault(under_critic, critic_base["base"])
            bases = {**bases, "critic": under_critic}
        states = States(
            {"policy": first_state(job, params, optimizer), "critic": first_state(job, critic_params, optimizer)},
            place_replicated(_first_running(options), job.mesh),
        )
        learn = make_learn(
            make_model(policy.config, config.compute, config.lora),
            make_model(critic.config, config.compute, config.lora),
            optimizer,
            whiten_rewards=options.whiten_rewards,
            normalize=options.normalize_scores,
            weights=judges.weights,
            epochs=options.epochs,
            mini_batches=options.mini_batches,
            micro_batches=config.micro_batches,
            seed=config.seed,
            may_rest=options.policy_may_rest,
            bases=bases,
        )

        def measure(experience: Experience, hyper: Hyper) -> Metrics:
            # Scores as they are at the first price: what was carried on would change the units from one to the next.
            return make_rollout(experience, hyper, whiten_rewards=False, weights=judges.weights)[1]

        def rates(step: int) -> dict[str, float]:
            peaks = {"learning_rate": None, "critic_learning_rate": options.critic_learning_rate}
            now = {name: rate_at(config.optim, step, job.total, peak) for name, peak in peaks.items()}
            warmup = options.critic_warmup_steps
            return now | ({"train_policy": float(step >= warmup)} if warmup else {})

        game = make_game(
            job=job,
            config=config,
            policy=policy,
            critic=critic,
            judges=judges,
            states=states,
            frozen=frozen,
            learn=learn,
            measure=measure,
            constants=_constants(config),
            bases=bases,
            exact_kl=options.kl == "exact",
        )
        return job.finish(policy, improve(game, states, train, held_out, rates, pretraining=pretraining))


def _constants(config: PPOConfig) -> dict[str, float]:
    """The hyper-parameters that stay as they are; infinity is a limit that nothing reaches."""
    options = config.ppo
    return {
        **{name: getattr(options, name) for name in ("kl_coef", "clip_eps", "value_clip_eps", "gamma", "lam")},
        "missing_eos_penalty": options.missing_eos_penalty,
        "entropy_coef": options.entropy_coef,
        "score_clip": math.inf if options.score_clip is None else options.score_clip,
        "early_stop_kl": math.inf if options.early_stop_kl is None else options.early_stop_kl,
        "kl_target": math.inf if options.kl_target is None else options.kl_target,
        "kl_horizon": config.kl_horizon,
        "ptx_coef": config.ptx.coef,
        "train_policy": 1.0,
    }


def _warn_of_a_sluggish_price(config: PPOConfig, steps: int) -> None:
    """Says so if an adaptive price of a nat can hardly change in this run."""
    if config.ppo.kl_target is None:
        return
    horizon, answers = config.kl_horizon, config.batch_size * config.rollout.answers
    most = (1 + 0.2 * answers / horizon) ** steps
    if most < SLUGGISH:
        log.warning(
            "ppo.kl_target: in %d steps of %d answers the price of a nat changes by a factor of %.2f at most; lower "
            "ppo.kl_horizon (%d answers) to have it adapt",
            steps,
            answers,
            most,
            horizon,
        )


def _first_running(options: PPOOptions) -> Running:
    return Running(
        kl_coef=None if options.kl_target is None else jnp.float32(options.kl_coef),
        scores=None if options.normalize_scores == "none" else no_moments(),
    )


def _take_pretraining(config: PPOConfig, job: Run, policy: Start, dataset: Rows | None) -> Loader | None:
    """The loader of the texts to learn from beside, if there are any.

    Raises:
        ValueError: if options of theirs would have no effect, or their rows do not divide over the devices.
    """
    named = config.ptx.dataset
    if dataset is None and named is None:
        if config.ptx != PTXConfig():
            raise ValueError("ptx: no effect without ptx.dataset; name one, or leave the others out")
        return None
    check_batch(job.mesh, "ptx.batch_size / micro_batches", config.ptx.batch_size // config.micro_batches)
    if dataset is not None and named is not None:
        raise ValueError(f"there are rows in memory and ptx.dataset={named} in the config; keep one of them")
    source = dataset if named is None else DatasetConfig(path=named)
    assert source is not None
    return make_pretraining_loader(job, policy, source, config.ptx.data, config.pretraining_rows)


def _take_critic(config: PPOConfig, job: Run, policy: Start, judges: Judges) -> tuple[Start, str]:
    """The model that is named; else the reward model, or the policy's trunk with a head of zeros.

    Returns:
        The model, a copy unless it is trained by adapters; and under which name that which its adapters stand over is
        frozen: the models that are there already need not be there twice.
    """
    if config.critic is not None:
        critic = load_start(config.critic, job.mesh, what="critic", scalar=True, new_head=True, dtype=config.lora.base)
        check_same_tokens(policy, critic, "the critic")
        return critic, "under_critic"
    start, name = (policy, "base") if judges.scorer is None else (judges.scorer, "scorer")
    if config.lora.rank is None:
        return take_start(None, start, job.mesh, scalar=True, new_head=True), name
    return scalar_start(start), name
