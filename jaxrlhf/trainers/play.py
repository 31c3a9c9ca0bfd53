"""The loop of the methods that learn from their own answers: PPO, GRPO.

An iteration is three programs over one mesh: sample answers; judge them under all models; learn from them for some
epochs. Python rewards run on the host between the last two.
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
from jaxrlhf.rewards.functions import RewardFn, check_columns, load_reward, name_rewards
from jaxrlhf.sharding.place import over_rows, place_batch, replicated, shardings_of
from jaxrlhf.steps.rollout import Experience, JudgeFn, LearnFn, States, make_judge
from jaxrlhf.trainers.fit import make_hyper
from jaxrlhf.trainers.host_rewards import Answers, read_answers
from jaxrlhf.trainers.rollout_config import RolloutTrainConfig
from jaxrlhf.trainers.run import Run
from jaxrlhf.trainers.start import Start, check_same_tokens, take_start
from jaxrlhf.types import Hyper, Metrics, Params, Samples

log = logging.getLogger(__name__)

MOST_CUT_OFF = 0.9
"""The share of answers that may be cut off at the start without a warning."""

_EVALUATION = 2**31 - 1
"""Where a step's number stands in the keys of training, this stands in those of evaluation."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Judges:
    """Who scores answers.

    Attributes:
        scorer: a reward model, or None.
        functions: Python rewards by name.
        weights: of all rewards by name.
    """

    scorer: Start | None
    functions: Mapping[str, RewardFn]
    weights: Mapping[str, float]


class Game(NamedTuple):
    """What an iteration needs besides the states and the batch.

    Attributes:
        job: the open run.
        policy: where the policy started.
        functions: Python rewards by name.
        frozen: parameters that nobody trains: the reference's, the reward model's.
        sample: the sampler.
        judge: see `steps.rollout.make_judge`.
        learn: see `steps.rollout.LearnFn`.
        measure: metrics of answers from which nothing is learned.
        constants: hyper-parameters that stay as they are.
    """

    job: Run
    policy: Start
    functions: Mapping[str, RewardFn]
    frozen: Mapping[str, Params]
    sample: SampleFn
    judge: JudgeFn
    learn: LearnFn
    measure: Callable[[Experience, Hyper], Metrics]
    constants: Hyper


def name_functions(config: RolloutTrainConfig, rewards: Sequence[RewardFn], has_model: bool) -> dict[str, RewardFn]:
    """The Python rewards of a run by name, those in memory first.

    Raises:
        ValueError: if nothing gives a reward, or two rewards have one name.
    """
    if callable(rewards):
        raise TypeError(f"rewards is one function; write rewards=[{getattr(rewards, '__name__', 'f')}]")
    functions = name_rewards([*rewards, *map(load_reward, config.rewards)], taken=["reward_model"])
    if not functions and not has_model and config.reward_model is None:
        raise ValueError("nothing gives a reward; set reward_model, or rewards: [path.py:function]")
    return functions


def take_judges(
    config: RolloutTrainConfig, job: Run, policy: Start, reward_model: Start | None, functions: Mapping[str, RewardFn]
) -> Judges:
    """The reward model in memory or the one that is named, and the weight of every reward.

    Raises:
        ValueError: if the reward model reads other tokens, or there are not as many weights as rewards.
    """
    scorer = None
    if reward_model is not None or config.reward_model is not None:
        scorer = take_start(config.reward_model, reward_model, job.mesh, what="reward_model", scalar=True)
        check_same_tokens(policy, scorer, "the reward model")
    names = [*(["reward_model"] if scorer is not None else []), *functions]
    weights = config.reward_weights or (1.0,) * len(names)
    if len(weights) != len(names):
        raise ValueError(f"reward_weights has {len(weights)} numbers for {len(names)} rewards: {', '.join(names)}")
    return Judges(scorer=scorer, functions=functions, weights=dict(zip(names, weights, strict=True)))


def make_game(
    job: Run,
    policy: Start,
    critic: Start | None,
    judges: Judges,
    states: States,
    frozen: Mapping[str, Params],
    learn: LearnFn,
    measure: Callable[[Experience, Hyper], Metrics],
    constants: Mapping[str, float],
) -> Game:
    """Compiles the programs of an iteration; where their results go is stated, so that hosts find their own rows.

    Args:
        job: the open run.
        policy: where the policy starts.
        critic: where the critic starts, or None.
        judges: who scores answers.
        states: what is trained.
        frozen: parameters that nobody trains.
        learn: see `steps.rollout.LearnFn`.
        measure: metrics of answers from which nothing is learned.
        constants: hyper-parameters that stay as they are.
    """
    config: Any = job.config
    model = make_model(policy.config, config.compute)
    judge = make_judge(
        model,
        None if critic is None else make_model(critic.config, config.compute),
        None if judges.scorer is None else make_model(judges.scorer.config, config.compute),
        rows_at_once=config.micro_rows,
        answers=config.rollout.answers,
    )
    rows, everywhere = over_rows(job.mesh), replicated(job.mesh)
    return Game(
        job=job,
        policy=policy,
        functions=judges.functions,
        frozen=frozen,
        sample=make_sampler(
            model,
            eos_ids=policy.eos_ids,
            max_new_tokens=config.rollout.max_new_tokens,
            answers=config.rollout.answers,
            prepare=unstack_layers,
            out_shardings=rows,
        ),
        judge=jax.jit(judge, out_shardings=rows),
        learn=jax.jit(learn, donate_argnums=0, out_shardings=(shardings_of(states), everywhere)),
        measure=jax.jit(measure, out_shardings=everywhere),
        constants=make_hyper(
            {**constants, "temperature": config.rollout.temperature, "max_grad_norm": config.optim.max_grad_norm}
        ),
    )


def improve(
    game: Game, states: States, train: Loader, held_out: Loader | None, rates: Callable[[int], dict[str, float]]
) -> Params:
    """Plays, learns, evaluates, saves and resumes.

    Args:
        game: the programs.
        states: the first states; donated.
        train: prompts to train on.
        held_out: prompts to evaluate on, or None.
        rates: the learning rates of a step.

    Returns:
        The policy to export: the best one if a metric chooses, else the last.
    """
    job = game.job
    config: Any = job.config
    check_columns(game.functions, train.index.columns)
    states, first = job.resume(states, game.frozen)
    key = jax.random.key(config.seed)
    if first == 0:
        _evaluate(game, states, held_out, 0)
    for n, batch in enumerate(train.prefetched(first, job.total), start=first):
        examples, step_key = train.batch_examples(n), jax.random.fold_in(key, n)
        experience, answers = _play(game, states, train.index, batch, examples, step_key)
        with job.journal.clock.phase("train"):
            hyper = {**game.constants, **make_hyper(rates(n))}
            states, metrics = game.learn(states, game.frozen, experience, hyper)
            jax.block_until_ready(metrics)
        job.journal.clock.tokens("train", _drawn_tokens(experience.samples) * config.options.epochs)
        job.journal.add(n + 1, metrics, rates(n))
        if n == first:
            _warn_of_short_answers(experience.samples, config)
        if config.samples_every and n % config.samples_every == 0:
            job.journal.write_samples(n + 1, answers.rows_to_show(experience.scores))
        found = _evaluate(game, states, held_out, n + 1)
        if job.saves_at(n + 1):
            job.save(n + 1, states, found)
    job.journal.flush()
    return job.best(states)["policy"].params


def _play(
    game: Game, states: States, index: Index, batch: Any, examples: np.ndarray, key: jax.Array
) -> tuple[Experience, Answers]:
    """Answers to a batch of prompts, the rows `examples` of the index, and what everyone says of them."""
    config: Any = game.job.config
    mesh, clock = game.job.mesh, game.job.journal.clock
    trained = {name: state.params for name, state in states.items()}
    prompts = place_batch(batch, mesh)
    with clock.phase("generate"):
        samples = game.sample(trained["policy"], prompts, key, temperature=config.rollout.temperature)
        jax.block_until_ready(samples)
    with clock.phase("score"):
        experience = game.judge(trained, game.frozen, prompts, samples, game.constants)
        answers = read_answers(samples, index, examples, config.rollout.answers, game.policy.tokenizer)
        scores = {**experience.scores, **answers.scores(game.functions, mesh)}
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


def _warn_of_short_answers(samples: Samples, config: RolloutTrainConfig) -> None:
    cut_off = 1 - float(jnp.mean(samples.terminated))
    if cut_off > MOST_CUT_OFF:
        log.warning(
            "%.0f %% of the answers were cut off at rollout.max_new_tokens=%d: rewards judge half answers; raise it, "
            "or start from a model that ends its answers",
            100 * cut_off,
            config.rollout.max_new_tokens,
        )


def _evaluate(game: Game, states: States, held_out: Loader | None, step: int) -> dict[str, float]:
    """Metrics of answers to held-out prompts, drawn with the same keys every time."""
    job = game.job
    if held_out is None or not job.evaluates_at(step):
        return {}
    job.journal.flush()
    root = jax.random.fold_in(jax.random.key(job.config.seed), _EVALUATION)

    def measured() -> Iterator[Metrics]:
        for number, batch in enumerate(held_out.eval_batches()):
            examples, key = held_out.eval_examples(number), jax.random.fold_in(root, number)
            experience, _ = _play(game, states, held_out.index, batch, examples, key)
            yield game.measure(experience, game.constants)

    return job.report_evaluation(step, average(measured()))
