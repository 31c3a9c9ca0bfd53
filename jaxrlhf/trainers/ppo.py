"""PPO with a KL penalty to a frozen reference: `run(config)`.

An iteration is three programs over one mesh: sample answers; judge them under policy, reference, critic and reward
model; shape the rewards and learn from them for some epochs. Python rewards run on the host between the last two.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxrlhf.data.index import Index
from jaxrlhf.data.loader import Loader
from jaxrlhf.evaluation.metrics import average
from jaxrlhf.generation.sampler import SampleFn, make_sampler
from jaxrlhf.models.decoder import make_model, unstack_layers
from jaxrlhf.rewards.functions import RewardFn, load_reward, name_rewards
from jaxrlhf.sharding.place import place_batch
from jaxrlhf.steps.ppo import LearnFn, States, make_learn
from jaxrlhf.steps.rollout import Experience, JudgeFn, make_judge, make_rollout
from jaxrlhf.trainers.answers import Answers, read_answers
from jaxrlhf.trainers.config import PPOConfig
from jaxrlhf.trainers.fit import make_hyper, make_optimizer, place_state, rate_at
from jaxrlhf.trainers.rows import Rows, make_loaders
from jaxrlhf.trainers.run import Run, Trained, open_run
from jaxrlhf.trainers.start import (
    Start,
    check_head,
    check_same_tokens,
    load_reference,
    load_start,
    own_copy,
    scalar_start,
)
from jaxrlhf.types import Hyper, Metrics, Params

_EVALUATION = 2**31 - 1
"""Where a step's number stands in the keys of training, this stands in those of evaluation."""


class Players(NamedTuple):
    """The models of a run: where policy and critic start, and the parameters that nobody trains."""

    policy: Start
    critic: Start
    scorer: Start | None
    frozen: dict[str, Params]


class Programs(NamedTuple):
    """The compiled programs of an iteration, and the numbers that they share."""

    sample: SampleFn
    judge: JudgeFn
    learn: LearnFn
    measure: Callable[[Experience, Hyper], Metrics]
    constants: Hyper


def run(
    config: PPOConfig,
    *,
    model: Start | None = None,
    reference: Start | None = None,
    reward_model: Start | None = None,
    dataset: Rows | None = None,
    eval_dataset: Rows | None = None,
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
        rewards: Python rewards, besides those that `config.rewards` names; see `rewards.functions`.

    Returns:
        The trained policy and where it was written.

    Raises:
        ValueError: if nothing gives a reward, or models do not fit together.
    """
    functions = name_rewards([*rewards, *map(load_reward, config.rewards)], taken=["reward_model"])
    if reward_model is None and config.reward_model is None and not functions:
        raise ValueError("nothing gives a reward; set reward_model, or rewards: [path.py:function]")
    with open_run(config) as job:
        players = _load_players(config, job, model, reference, reward_model)
        train, held_out = make_loaders(job, "prompts", players.policy.tokenizer, dataset, eval_dataset)
        programs = _compile(config, players)
        states = {
            "policy": place_state(job, players.policy.params, make_optimizer(config.optim)),
            "critic": place_state(job, players.critic.params, make_optimizer(config.optim)),
        }
        states, first = job.resume(states)
        key = jax.random.key(config.seed)
        if first == 0:
            _evaluate(job, programs, players, states, held_out, functions, 0)
        for n, batch in enumerate(train.prefetched(first, job.total), start=first):
            examples, step_key = train.batch_examples(n), jax.random.fold_in(key, n)
            experience, answers = _play(
                job, programs, players, states, train.index, batch, examples, functions, step_key
            )
            rates = _rates(config, n, job.total)
            with job.journal.clock.phase("train"):
                states, metrics = programs.learn(states, experience, {**programs.constants, **make_hyper(rates)})
                jax.block_until_ready(metrics)
            job.journal.clock.tokens("train", answers.tokens * config.ppo.epochs)
            job.journal.add(n + 1, metrics, rates)
            if config.samples_every and n % config.samples_every == 0:
                job.journal.write_samples(n + 1, answers.rows_to_show(experience.scores))
            found = _evaluate(job, programs, players, states, held_out, functions, n + 1)
            if job.saves_at(n + 1):
                job.save(n + 1, states, found)
        job.journal.flush()
        return job.finish(players.policy, job.best(states)["policy"].params)


def _load_players(
    config: PPOConfig, job: Run, model: Start | None, reference: Start | None, reward_model: Start | None
) -> Players:
    policy = load_start(config.model, job.mesh) if model is None else check_head(model, "model", scalar=False)
    scorer = None if reward_model is None else check_head(reward_model, "reward_model", scalar=True)
    if scorer is None and config.reward_model is not None:
        scorer = load_start(config.reward_model, job.mesh, scalar=True)
    frozen = {"reference": load_reference(config.reference, reference, policy, job.mesh)}
    if scorer is not None:
        check_same_tokens(policy, scorer, "the reward model")
        frozen["scorer"] = own_copy(scorer.params, job.mesh)
    if config.critic is not None:
        critic = load_start(config.critic, job.mesh, scalar=True)
        check_same_tokens(policy, critic, "the critic")
    else:
        critic = scalar_start(policy) if scorer is None else scorer
    return Players(policy=policy, critic=critic, scorer=scorer, frozen=frozen)


def _compile(config: PPOConfig, players: Players) -> Programs:
    policy = make_model(players.policy.config, config.compute)
    critic = make_model(players.critic.config, config.compute)
    scorer = None if players.scorer is None else make_model(players.scorer.config, config.compute)
    options, rollout = config.ppo, config.rollout
    learn = make_learn(
        policy,
        critic,
        make_optimizer(config.optim),
        whiten_rewards=options.whiten_rewards,
        epochs=options.epochs,
        mini_batches=options.mini_batches,
        micro_batches=config.micro_batches,
        seed=config.seed,
    )
    judge = make_judge(
        policy, critic, scorer, parts=options.mini_batches * config.micro_batches, answers=rollout.answers
    )
    return Programs(
        sample=make_sampler(
            policy,
            eos_ids=players.policy.eos_ids,
            max_new_tokens=rollout.max_new_tokens,
            answers=rollout.answers,
            prepare=unstack_layers,
        ),
        judge=jax.jit(judge),
        learn=jax.jit(learn, donate_argnums=0),
        measure=jax.jit(lambda experience, hyper: make_rollout(experience, hyper, whiten_rewards=False)[1]),
        constants=make_hyper(
            {
                "temperature": rollout.temperature,
                "kl_coef": options.kl_coef,
                "clip_eps": options.clip_eps,
                "value_clip_eps": options.value_clip_eps,
                "gamma": options.gamma,
                "lam": options.lam,
                "missing_eos_penalty": options.missing_eos_penalty,
                "max_grad_norm": config.optim.max_grad_norm,
            }
        ),
    )


def _rates(config: PPOConfig, step: int, total: int) -> dict[str, float]:
    return {
        "learning_rate": rate_at(config.optim, step, total),
        "critic_learning_rate": rate_at(config.optim, step, total, config.ppo.critic_learning_rate),
    }


def _play(
    job: Run,
    programs: Programs,
    players: Players,
    states: States,
    index: Index,
    batch: Any,
    examples: np.ndarray,
    functions: Mapping[str, RewardFn],
    key: jax.Array,
) -> tuple[Experience, Answers]:
    """Answers to a batch of prompts, the rows `examples` of the index, and what everyone says of them."""
    config: Any = job.config
    clock = job.journal.clock
    policy_params, critic_params = states["policy"].params, states["critic"].params
    prompts = place_batch(batch, job.mesh)
    with clock.phase("generate"):
        samples = programs.sample(policy_params, prompts, key, temperature=config.rollout.temperature)
        jax.block_until_ready(samples)
    with clock.phase("score"):
        constants = programs.constants
        experience = programs.judge(policy_params, critic_params, players.frozen, prompts, samples, constants)
        answers = read_answers(samples, index, examples, config.rollout.answers, players.policy.tokenizer)
        scores = {**experience.scores, **answers.scores(functions, job.mesh)}
        jax.block_until_ready(experience)
    clock.tokens("generate", answers.tokens)
    clock.tokens("score", answers.tokens)
    return dataclasses.replace(experience, scores=scores), answers


def _evaluate(
    job: Run,
    programs: Programs,
    players: Players,
    states: States,
    held_out: Loader | None,
    functions: Mapping[str, RewardFn],
    step: int,
) -> dict[str, float]:
    """Metrics of answers to held-out prompts, drawn with the same keys every time."""
    if held_out is None or not job.evaluates_at(step):
        return {}
    job.journal.flush()
    root = jax.random.fold_in(jax.random.key(job.config.seed), _EVALUATION)

    def measured() -> Iterator[Metrics]:
        for number, batch in enumerate(held_out.eval_batches()):
            examples, key = held_out.eval_examples(number), jax.random.fold_in(root, number)
            experience, _ = _play(job, programs, players, states, held_out.index, batch, examples, functions, key)
            yield programs.measure(experience, programs.constants)

    metrics = average(measured())
    metrics.pop("num_tokens")
    metrics = {f"eval/{name}": value for name, value in metrics.items()}
    job.journal.write(step, metrics)
    return metrics
