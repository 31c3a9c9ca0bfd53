"""The loop of the methods that learn from their own answers: PPO, GRPO, rejection sampling.

An iteration is three programs over one mesh: sample answers; judge them under all models; learn from them for some
epochs. Python rewards run on the host between the last two.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrlhf.data.index import Index
from jaxrlhf.data.loader import Loader
from jaxrlhf.evaluation.metrics import average
from jaxrlhf.generation.sampler import Sampler
from jaxrlhf.generation.settings import SamplingSettings
from jaxrlhf.models.decoder import make_model
from jaxrlhf.ops.stats import merged_values
from jaxrlhf.rewards.functions import RewardFn
from jaxrlhf.sharding.place import over_rows, place_batch, replicated, shardings_of, to_host
from jaxrlhf.steps.adapters import WHOLE, Bases, everyone, judge_over
from jaxrlhf.steps.experience import Experience, JudgeFn, LearnFn, States, make_judge, total_scores
from jaxrlhf.trainers.host_rewards import SHOWN, Answers, read_answers
from jaxrlhf.trainers.judges import Judges, refuse_nan
from jaxrlhf.trainers.rollout_config import MOST_CUT_OFF, RolloutTrainConfig
from jaxrlhf.trainers.run import Run
from jaxrlhf.trainers.start import Start
from jaxrlhf.trainers.state import make_hyper
from jaxrlhf.types import Hyper, Metrics, Params, Samples

log = logging.getLogger(__name__)

_EVALUATION = 2**31 - 1
"""Where a step's number stands in the keys of training, this stands in those of evaluation."""


class Game(NamedTuple):
    """What an iteration needs besides the states and the batch.

    Attributes:
        job: the open run.
        config: of the run.
        tokenizer: of the policy.
        functions: Python rewards by name.
        frozen: parameters that nobody trains: the reference's, the reward model's, a base's.
        bases: which models stand over which of them; see `steps.adapters.everyone`.
        sample: the sampler.
        settings: how it draws.
        judge: see `steps.experience.make_judge`.
        total: [B] float32, the weighted sum of the scores of each answer, NaN where there is none.
        learn: see `steps.experience.LearnFn`.
        measure: metrics of answers from which nothing is learned.
        constants: hyper-parameters that stay as they are.
    """

    job: Run
    config: RolloutTrainConfig
    tokenizer: Any
    functions: Mapping[str, RewardFn]
    frozen: Mapping[str, Params]
    bases: Bases
    sample: Sampler
    settings: SamplingSettings
    judge: JudgeFn
    total: Callable[[Experience], jax.Array]
    learn: LearnFn
    measure: Callable[[Experience, Hyper], Metrics]
    constants: Hyper


class Played(NamedTuple):
    """Answers to a batch of prompts.

    Attributes:
        experience: what everyone says of them.
        totals: [B] float32, see `Game.total`.
        answers: those of this process, decoded.
        tokens: drawn, by all processes.
    """

    experience: Experience
    totals: jax.Array
    answers: Answers
    tokens: int


def make_game(
    *,
    job: Run,
    config: RolloutTrainConfig,
    policy: Start,
    critic: Start | None,
    judges: Judges,
    states: States,
    frozen: Mapping[str, Params],
    learn: LearnFn,
    measure: Callable[[Experience, Hyper], Metrics],
    constants: Mapping[str, float],
    bases: Bases = WHOLE,
    share_prompts: bool = False,
    exact_kl: bool = False,
    only_scored: bool = False,
) -> Game:
    """Compiles the programs of an iteration; where their results go is stated, so that hosts find their own rows.

    Args:
        job: the open run.
        config: of the run.
        policy: where the policy starts.
        critic: where the critic starts, or None.
        judges: who scores answers.
        states: what is trained.
        frozen: parameters that nobody trains.
        learn: see `steps.experience.LearnFn`.
        measure: metrics of answers from which nothing is learned.
        constants: hyper-parameters that stay as they are.
        bases: see `Game`.
        share_prompts: see `steps.experience.make_judge`.
        exact_kl: see `steps.experience.make_judge`.
        only_scored: whether nobody asks how likely answers are.
    """
    model = make_model(policy.config, config.compute, config.lora)
    judge = make_judge(
        None if only_scored else model,
        None if critic is None else make_model(critic.config, config.compute, config.lora),
        None if judges.scorer is None else make_model(judges.scorer.config, config.compute),
        rows_at_once=config.micro_rows,
        answers=config.rollout.answers,
        share_prompts=share_prompts,
        exact_kl=exact_kl,
    )

    def total(experience: Experience) -> jax.Array:
        scores, there = total_scores(experience, judges.weights)
        return jnp.where(there, scores, jnp.nan)

    rows, everywhere = over_rows(job.mesh), replicated(job.mesh)
    return Game(
        job=job,
        config=config,
        tokenizer=policy.tokenizer,
        functions=judges.functions,
        frozen=frozen,
        bases=bases,
        sample=Sampler(
            model,
            max_new_tokens=config.rollout.max_new_tokens,
            answers=config.rollout.answers,
            slots=config.rollout.slots,
            chunk=config.rollout.chunk,
            prefill_chunk=config.rollout.prefill_chunk,
            draw=config.rollout.draw,
            out_shardings=rows,
        ),
        settings=SamplingSettings(temperature=config.rollout.temperature, eos_ids=tuple(policy.eos_ids)),
        judge=jax.jit(judge_over(judge, bases), out_shardings=rows),
        total=jax.jit(total, out_shardings=rows),
        learn=jax.jit(learn, donate_argnums=0, out_shardings=(shardings_of(states), everywhere)),
        measure=jax.jit(measure, out_shardings=everywhere),
        constants=make_hyper(
            {**constants, "temperature": config.rollout.temperature, "max_grad_norm": config.optim.max_grad_norm}
        ),
    )


def improve(
    game: Game,
    states: States,
    train: Loader,
    held_out: Loader | None,
    rates: Callable[[int], dict[str, float]],
    *,
    pretraining: Loader | None = None,
) -> Params:
    """Plays, learns, evaluates, saves and resumes.

    Args:
        game: the programs.
        states: the first states; donated.
        train: prompts to train on.
        held_out: prompts to evaluate on, or None.
        rates: the learning rates of a step, and what else depends on it.
        pretraining: other rows to learn from in the same updates, a batch a step, or None.

    Returns:
        The policy to export: the best one if a metric chooses, else the last.
    """
    job, config = game.job, game.config
    states, first = job.resume(states, game.frozen)
    key = jax.random.key(config.seed)
    if first == 0:
        _evaluate(game, states, held_out, 0)
    others = itertools.repeat(None) if pretraining is None else pretraining.prefetched(first, job.total)
    for n, (batch, beside) in enumerate(zip(train.prefetched(first, job.total), others, strict=False), start=first):
        examples, step_key = train.batch_examples(n), jax.random.fold_in(key, n)
        experience, totals, answers, tokens = _play(game, states, train.index, batch, examples, step_key)
        known = rates(n)
        with job.journal.clock.phase("train"):
            hyper = {**game.constants, **make_hyper(known)}
            more = () if beside is None else (place_batch(beside, job.mesh),)
            states, metrics = game.learn(states, game.frozen, experience, hyper, *more)
            jax.block_until_ready(metrics)
        job.journal.clock.tokens("train", round(tokens * config.learned * config.options.epochs))
        job.journal.add(n + 1, metrics, known, to_host(totals))
        if n == first:
            _warn_of_short_answers(experience.samples, config)
            _warn_of_nothing_learned(merged_values([metrics]))
        if config.samples_every and n % config.samples_every == 0:
            job.journal.write_samples(n + 1, answers.rows_to_show(experience.scores, totals))
        found = _evaluate(game, states, held_out, n + 1)
        if job.saves_at(n + 1):
            job.save(n + 1, states, found)
    job.journal.flush()
    return job.best(states).models["policy"].params


def _play(game: Game, states: States, index: Index, batch: Any, examples: np.ndarray, key: jax.Array) -> Played:
    """Answers to a batch of prompts, the rows `examples` of the index, and what everyone says of them."""
    config, mesh, clock = game.config, game.job.mesh, game.job.journal.clock
    trained = {name: state.params for name, state in states.models.items()}
    prompts = place_batch(batch, mesh)
    with clock.phase("generate"):
        policy = everyone(trained, game.frozen, game.bases)["policy"]
        samples = game.sample(policy, prompts, key, game.settings)
        jax.block_until_ready(samples)
    with clock.phase("score"):
        experience = game.judge(trained, game.frozen, prompts, samples, game.constants)
        answers = read_answers(samples, index, examples, config.rollout.answers, game.tokenizer)
        scores = {**experience.scores, **answers.scores(game.functions, mesh)}
        jax.block_until_ready(experience)
    refuse_nan(experience.scores)
    experience = dataclasses.replace(experience, scores=scores)
    tokens = int(jnp.sum(samples.mask))
    for phase in ("generate", "score"):
        clock.tokens(phase, tokens)
    return Played(experience, game.total(experience), answers, tokens)


def _warn_of_short_answers(samples: Samples, config: RolloutTrainConfig) -> None:
    cut_off = 1 - float(jnp.mean(samples.terminated))
    if cut_off > MOST_CUT_OFF:
        log.warning(
            "%.0f %% of the answers were cut off at rollout.max_new_tokens=%d: rewards judge half answers; raise it, "
            "or start from a model that ends its answers",
            100 * cut_off,
            config.rollout.max_new_tokens,
        )


def _warn_of_nothing_learned(metrics: Mapping[str, float]) -> None:
    if math.isnan(metrics.get("reward", metrics.get("objective/scores", 0.0))):
        log.warning("no reward has an opinion on any answer of this batch, so there is nothing to learn from it")
    elif metrics.get("rejection/kept") == 0.0:
        log.warning(
            "no answer of this batch reaches rejection.min_score, so there is nothing to learn from it; lower it"
        )
    elif metrics.get("frac_reward_zero_std") == 1.0:
        log.warning(
            "in each group all rewards are equal, so there is nothing to learn; use a reward that tells answers apart"
        )


def _evaluate(game: Game, states: States, held_out: Loader | None, step: int) -> dict[str, float]:
    """Metrics of answers to held-out prompts, drawn with the same keys every time."""
    job = game.job
    if held_out is None or not job.evaluates_at(step):
        return {}
    job.journal.flush()
    root = jax.random.fold_in(jax.random.key(job.config.seed), _EVALUATION)
    shown: list[dict[str, Any]] = []

    def measured() -> Iterator[Metrics]:
        for number, batch in enumerate(held_out.eval_batches()):
            examples = held_out.eval_examples(number)
            played = _play(game, states, held_out.index, batch, examples, root)  # rows have numbers of their own
            if game.config.samples_every and len(shown) < SHOWN:
                answers = game.config.rollout.answers
                shown.extend(played.answers.prompts_to_show(played.experience.scores, played.totals, answers))
            yield game.measure(played.experience, game.constants)

    found = average(measured())
    job.journal.write_samples(step, shown[:SHOWN])
    return job.report_evaluation(step, found)
