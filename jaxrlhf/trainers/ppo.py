"""PPO with a KL penalty to a frozen reference: `run(config)`.

An iteration is three programs over one mesh: sample answers; judge them under policy, reference, critic and reward
model; shape the rewards and learn from them for some epochs. Python rewards run on the host between the last two.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrlhf.data.index import Index
from jaxrlhf.data.loader import Loader
from jaxrlhf.evaluation.metrics import average
from jaxrlhf.generation.sampler import SampleFn, make_sampler
from jaxrlhf.models.decoder import make_model, unstack_layers
from jaxrlhf.rewards.functions import RewardFn, load_reward, name_rewards
from jaxrlhf.sharding.place import over_rows, place_batch, replicated, shardings_of
from jaxrlhf.steps.ppo import LearnFn, States, make_learn
from jaxrlhf.steps.rollout import Experience, JudgeFn, make_judge, make_rollout
from jaxrlhf.trainers.config import PPOConfig
from jaxrlhf.trainers.fit import first_state, make_hyper, make_optimizer, rate_at
from jaxrlhf.trainers.host_rewards import Answers, read_answers
from jaxrlhf.trainers.rows import Rows, make_loaders
from jaxrlhf.trainers.run import Run, Trained, open_run
from jaxrlhf.trainers.start import Start, check_same_tokens, load_start, take_reference, take_start
from jaxrlhf.types import Hyper, Metrics, Params, Samples

log = logging.getLogger(__name__)

MOST_CUT_OFF = 0.9
"""The share of answers that may be cut off at the start without a warning."""

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


class Game(NamedTuple):
    """What an iteration needs besides the states and the batch."""

    job: Run
    players: Players
    programs: Programs
    rewards: Mapping[str, RewardFn]


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
        players = _take_players(config, job, model, reference, reward_model)
        length = config.rollout.max_new_tokens
        train, held_out = make_loaders(job, "prompts", players.policy, dataset, eval_dataset, answer=length)
        states = {
            "policy": first_state(job, players.policy.params, make_optimizer(config.optim)),
            "critic": first_state(job, players.critic.params, make_optimizer(config.optim)),
        }
        game = Game(job=job, players=players, programs=_compile(config, players, states, job), rewards=functions)
        states, first = job.resume(states, players.frozen)
        key = jax.random.key(config.seed)
        if first == 0:
            _evaluate(game, states, held_out, 0)
        for n, batch in enumerate(train.prefetched(first, job.total), start=first):
            experience, answers = _play(
                game, states, train.index, batch, train.batch_examples(n), jax.random.fold_in(key, n)
            )
            rates = _rates(config, n, job.total)
            with job.journal.clock.phase("train"):
                hyper = {**game.programs.constants, **make_hyper(rates)}
                states, metrics = game.programs.learn(states, experience, hyper)
                jax.block_until_ready(metrics)
            job.journal.clock.tokens("train", _drawn_tokens(experience.samples) * config.ppo.epochs)
            job.journal.add(n + 1, metrics, rates)
            if n == first:
                _warn_of_short_answers(experience.samples, config)
            if config.samples_every and n % config.samples_every == 0:
                job.journal.write_samples(n + 1, answers.rows_to_show(experience.scores))
            found = _evaluate(game, states, held_out, n + 1)
            if job.saves_at(n + 1):
                job.save(n + 1, states, found)
        job.journal.flush()
        return job.finish(players.policy, job.best(states)["policy"].params)


def _take_players(
    config: PPOConfig, job: Run, model: Start | None, reference: Start | None, reward_model: Start | None
) -> Players:
    """All models with parameters of their own: those of policy and critic are donated by the first update."""
    policy = take_start(config.model, model, job.mesh)
    frozen = {"reference": take_reference(config.reference, reference, policy, job.mesh)}
    scorer = None
    if reward_model is not None or config.reward_model is not None:
        scorer = take_start(config.reward_model, reward_model, job.mesh, what="reward_model", scalar=True)
        check_same_tokens(policy, scorer, "the reward model")
        frozen["scorer"] = scorer.params
    if config.critic is not None:
        critic = load_start(config.critic, job.mesh, what="critic", scalar=True, new_head=True)
        check_same_tokens(policy, critic, "the critic")
    else:
        critic = take_start(None, policy if scorer is None else scorer, job.mesh, scalar=True, new_head=True)
    return Players(policy=policy, critic=critic, scorer=scorer, frozen=frozen)


def _compile(config: PPOConfig, players: Players, states: States, job: Run) -> Programs:
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
    judge = make_judge(policy, critic, scorer, rows_at_once=config.micro_rows, answers=rollout.answers)
    rows, everywhere = over_rows(job.mesh), replicated(job.mesh)
    return Programs(
        sample=make_sampler(
            policy,
            eos_ids=players.policy.eos_ids,
            max_new_tokens=rollout.max_new_tokens,
            answers=rollout.answers,
            prepare=unstack_layers,
            out_shardings=rows,
        ),
        judge=jax.jit(judge, out_shardings=rows),
        learn=jax.jit(learn, donate_argnums=0, out_shardings=(shardings_of(states), everywhere)),
        measure=jax.jit(
            lambda experience, hyper: make_rollout(experience, hyper, whiten_rewards=False)[1],
            out_shardings=everywhere,
        ),
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
    game: Game, states: States, index: Index, batch: Any, examples: np.ndarray, key: jax.Array
) -> tuple[Experience, Answers]:
    """Answers to a batch of prompts, the rows `examples` of the index, and what everyone says of them."""
    job, players, programs, rewards = game
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
        scores = {**experience.scores, **answers.scores(rewards, job.mesh)}
        jax.block_until_ready(experience)
    _refuse_nan(experience.scores)
    for phase in ("generate", "score"):
        clock.tokens(phase, _drawn_tokens(samples))
    return dataclasses.replace(experience, scores=scores), answers


def _drawn_tokens(samples: Samples) -> int:
    """Tokens that were drawn, by all processes."""
    return int(jnp.sum(samples.mask))


def _refuse_nan(scores: Mapping[str, jax.Array]) -> None:
    """NaN from a Python reward says that it has no opinion; from a model it says that the model is broken."""
    for name, values in scores.items():
        if bad := int(jnp.sum(~jnp.isfinite(values))):
            raise ValueError(f"{name} gave NaN or infinity for {bad} of {len(values)} answers; it is not usable")


def _warn_of_short_answers(samples: Samples, config: PPOConfig) -> None:
    cut_off = 1 - float(jnp.mean(samples.terminated))
    if cut_off > MOST_CUT_OFF:
        log.warning(
            "%.0f %% of the answers were cut off at rollout.max_new_tokens=%d: a reward of the end says nothing; "
            "raise it, or start from a model that ends its answers",
            100 * cut_off,
            config.rollout.max_new_tokens,
        )


def _evaluate(game: Game, states: States, held_out: Loader | None, step: int) -> dict[str, float]:
    """Metrics of answers to held-out prompts, drawn with the same keys every time."""
    job, _, programs, _ = game
    if held_out is None or not job.evaluates_at(step):
        return {}
    job.journal.flush()
    root = jax.random.fold_in(jax.random.key(job.config.seed), _EVALUATION)

    def measured() -> Iterator[Metrics]:
        for number, batch in enumerate(held_out.eval_batches()):
            examples, key = held_out.eval_examples(number), jax.random.fold_in(root, number)
            experience, _ = _play(game, states, held_out.index, batch, examples, key)
            yield programs.measure(experience, programs.constants)

    return job.report_evaluation(step, average(measured()))
