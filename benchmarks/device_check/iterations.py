"""The section `iterations`: one iteration of DPO, GRPO and PPO, each phase timed by itself."""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.device_check.clock import Clock
from benchmarks.device_check.compiled import peak_bytes
from benchmarks.device_check.contest import attempt
from benchmarks.device_check.models import (
    OPTIMIZER,
    hyper,
    pairs,
    prompts,
    random_params,
    size_of,
)
from benchmarks.device_check.shapes import Iteration, Shapes
from benchmarks.device_check.sheet import Sheet
from benchmarks.device_check.units import MIB
from jaxrlhf.generation.sampler import Sampler
from jaxrlhf.models.config import ComputeConfig
from jaxrlhf.models.decoder import make_model
from jaxrlhf.steps import grpo, ppo
from jaxrlhf.steps.dpo import dpo_totals, preference_loss
from jaxrlhf.steps.experience import States, make_judge
from jaxrlhf.steps.shaping import FIXED
from jaxrlhf.steps.update import init_state, make_update

ITERATIONS = 3
"""The first compiles and is not counted."""

COMPUTE = ComputeConfig(dtype="bfloat16", remat="full")

Phase = tuple[str, int]  # its name, and the tokens that it is counted by
Phases = Iterator[tuple[Phase, Any]]  # and what to wait for


def measure(sheet: Sheet, shapes: Shapes, method: str) -> None:
    """Writes a row for each phase of a method's iteration, and one for the whole.

    Args:
        sheet: the section's.
        shapes: sizes.
        method: "dpo", "grpo" or "ppo".
    """
    shape = shapes.iteration
    row = {"dtype": "bfloat16, weights float32", "implementation": "jaxrlhf"}
    row["shape"] = f"{size_of(shape.model)}, {_described(shape, method)}"
    done = attempt(sheet, {"name": method.upper(), **row}, lambda: _timed(METHODS[method](shape), sheet.clock))
    if done is None:
        return
    peak = peak_bytes()
    for (name, tokens), seconds in done[0].items():
        middle = statistics.median(seconds)
        found = {"ms": 1e3 * middle, "rounds": len(seconds), "tokens_per_s": tokens / middle}
        found["peak_mib"] = None if peak is None else peak / MIB
        sheet.add(**row, name=f"{method.upper()}: {name}", **found)


def _described(shape: Iteration, method: str) -> str:
    if method == "dpo":
        return f"{shape.pairs} pairs of {shape.pair_length}"
    return f"{_answers(shape)} x ({shape.prompt} + {shape.new})"


def _answers(shape: Iteration) -> int:
    return shape.prompts * shape.answers


def _timed(iterate: Callable[[], Phases], clock: Clock) -> dict[Phase, list[float]]:
    """Seconds of each phase, and of the whole as the phase "all", without those of the first iteration."""
    found: dict[Phase, list[float]] = {}
    for number in range(ITERATIONS):
        if number > 1 and not clock.left():
            break
        began, whole, tokens = time.perf_counter(), 0.0, 0
        for phase, result in iterate():
            jax.block_until_ready(result)
            seconds = time.perf_counter() - began
            if number:
                found.setdefault(phase, []).append(seconds)
            began, whole, tokens = time.perf_counter(), whole + seconds, phase[1]
        if number:
            found.setdefault(("all", tokens), []).append(whole)
    return found


def _dpo(shape: Iteration) -> Callable[[], Phases]:
    """The reference's forward pass is in the step, hence there is one phase; all tokens of a pair are counted."""
    step = make_update(preference_loss(make_model(shape.model, COMPUTE)), dpo_totals, OPTIMIZER)
    run = jax.jit(step, donate_argnums=0)
    reference, numbers = random_params(shape.model), hyper(beta=0.1)
    state = init_state(jax.tree.map(jnp.copy, reference), OPTIMIZER)
    batch = pairs(shape.model, shape.pairs, shape.pair_length, shape.pair_prompt)

    def iterate() -> Phases:
        nonlocal state
        state, metrics = run(state, {"reference": reference}, batch, numbers)
        yield ("train", 2 * shape.pairs * shape.pair_length), metrics

    return iterate


def _grpo(shape: Iteration) -> Callable[[], Phases]:
    """Scores are random numbers, in place of a Python function's; answers are of full length, and counted."""
    policy = make_model(shape.model, COMPUTE)
    sample = Sampler(policy, max_new_tokens=shape.new, answers=shape.answers)
    part = _answers(shape) // shape.micro_batches
    judge = jax.jit(make_judge(policy, None, None, rows_at_once=part, answers=shape.answers))
    learn = grpo.make_learn(
        policy,
        OPTIMIZER,
        answers=shape.answers,
        baseline="mean",
        scale="group",
        reduction="dapo",
        kl="unbiased",
        epochs=1,
        mini_batches=1,
        micro_batches=shape.micro_batches,
        seed=0,
    )
    numbers = hyper(temperature=1.0, clip_low=0.2, clip_high=0.2, kl_coef=0.05)
    scores = {"random": jax.random.normal(jax.random.key(5), (_answers(shape),))}
    frozen = {"reference": random_params(shape.model)}
    states = States({"policy": init_state(random_params(shape.model), OPTIMIZER)})
    return _played(shape, sample, judge, learn, states, frozen, numbers, shape.prompts, scores)


def _ppo(shape: Iteration) -> Callable[[], Phases]:
    """Policy and critic are trained, reference and reward model frozen, all four of one size."""
    policy, scalar = make_model(shape.model, COMPUTE), dataclasses.replace(shape.model, scalar_head=True)
    critic = make_model(scalar, COMPUTE)
    sample = Sampler(policy, max_new_tokens=shape.new)
    part = _answers(shape) // shape.micro_batches
    judge = jax.jit(make_judge(policy, critic, critic, rows_at_once=part, answers=1))
    learn = ppo.make_learn(
        policy,
        critic,
        OPTIMIZER,
        whiten_rewards=False,
        epochs=1,
        mini_batches=1,
        micro_batches=shape.micro_batches,
        seed=0,
    )
    numbers = {"temperature": 1.0, "clip_eps": 0.2, "value_clip_eps": 0.2, "gamma": 1.0, "lam": 0.95, "kl_coef": 0.05}
    numbers |= {"score_clip": math.inf, "missing_eos_penalty": 0.0, "entropy_coef": 0.0, "critic_learning_rate": 1e-5}
    frozen = {"reference": random_params(shape.model), "scorer": random_params(scalar, seed=1)}
    trained = {"policy": random_params(shape.model), "critic": random_params(scalar)}
    states = States({name: init_state(params, OPTIMIZER) for name, params in trained.items()}, FIXED)
    return _played(shape, sample, judge, learn, states, frozen, hyper(**numbers), _answers(shape), {})


def _played(
    shape: Iteration,
    sample: Any,
    judge: Any,
    learn: Any,
    states: States,
    frozen: Any,
    numbers: Any,
    rows: int,
    more: Any,
) -> Callable[[], Phases]:
    """An iteration as `trainers.play` goes through it: sample, judge, learn. `more` are scores from elsewhere."""
    run, asked = jax.jit(learn, donate_argnums=0), prompts(shape.model, rows, shape.prompt)
    tokens, step = _answers(shape) * shape.new, 0

    def iterate() -> Phases:
        nonlocal states, step
        trained = {name: state.params for name, state in states.models.items()}
        step += 1
        samples = sample(trained["policy"], asked, jax.random.key(step))
        yield ("generate", tokens), samples
        experience = judge(trained, frozen, asked, samples, numbers)
        yield ("score", tokens), experience
        del trained  # the state is given away
        experience = dataclasses.replace(experience, scores={**experience.scores, **more})
        states, metrics = run(states, frozen, experience, numbers)
        yield ("train", tokens), metrics

    return iterate


METHODS: dict[str, Callable[[Iteration], Callable[[], Phases]]] = {"dpo": _dpo, "grpo": _grpo, "ppo": _ppo}
