"""The loop of the methods that learn from a fixed set of rows: SFT, reward models, DPO, KTO."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxrlhf.data.loader import Loader
from jaxrlhf.evaluation.metrics import average
from jaxrlhf.optim import adamw_direction, learning_rate
from jaxrlhf.sharding.place import place_batch, replicated, shardings_of
from jaxrlhf.sharding.rules import shardings_for
from jaxrlhf.steps.update import CouplingFn, LossFn, TotalsFn, init_state, make_evaluate, make_update
from jaxrlhf.trainers.config import OptimConfig
from jaxrlhf.trainers.run import Run
from jaxrlhf.types import Hyper, Params, TrainState


def fit(
    run: Run,
    loss_fn: LossFn,
    totals_fn: TotalsFn,
    params: Params,
    train: Loader,
    held_out: Loader | None,
    *,
    coupling: CouplingFn | None = None,
    frozen: Params | None = None,
    constants: Mapping[str, float] | None = None,
) -> Params:
    """Trains, evaluates, saves and resumes; what is trained is decided by the loss.

    Args:
        run: the open run.
        loss_fn: the method's loss.
        totals_fn: the method's totals.
        params: to start from; donated.
        train: batches to train on.
        held_out: batches to evaluate on, or None.
        coupling: what couples the rows of a batch, if the method has such; see `make_update`.
        frozen: parameters that the loss reads and nobody trains, such as the reference's.
        constants: hyper-parameters of the loss.

    Returns:
        The parameters to export: the best ones if a metric chooses, else the last.
    """
    config, optim = run.config, run.config.optim
    optimizer = make_optimizer(optim)
    state = first_state(run, params, optimizer)
    update = make_update(
        loss_fn, totals_fn, optimizer, coupling=coupling, micro_batches=config.micro_batches, seed=config.seed
    )
    step = jax.jit(update, donate_argnums=0, out_shardings=(shardings_of(state), replicated(run.mesh)))
    evaluate = jax.jit(make_evaluate(loss_fn, totals_fn, coupling), out_shardings=replicated(run.mesh))
    fixed = make_hyper({"max_grad_norm": optim.max_grad_norm, **(constants or {})})

    def held_out_metrics(params: Params, steps: int) -> dict[str, float]:
        if held_out is None or not run.evaluates_at(steps):
            return {}
        run.journal.flush()
        batches = (place_batch(batch, run.mesh) for batch in held_out.eval_batches())
        return run.report_evaluation(steps, average(evaluate(params, frozen, batch, fixed) for batch in batches))

    state, first = run.resume(state, frozen)
    if first == 0:
        held_out_metrics(state.params, 0)
    for n, batch in enumerate(train.prefetched(first, run.total), start=first):
        rate = rate_at(optim, n, run.total)
        hyper = {**fixed, **make_hyper({"learning_rate": rate})}
        state, metrics = step(state, frozen, place_batch(batch, run.mesh), hyper)
        run.journal.add(n + 1, metrics, {"learning_rate": rate})
        found = held_out_metrics(state.params, n + 1)
        if run.saves_at(n + 1):
            run.save(n + 1, state, found)
    run.journal.flush()
    return run.best(state).params


def make_optimizer(optim: OptimConfig) -> optax.GradientTransformation:
    """The direction that a config asks for."""
    return adamw_direction(b1=optim.b1, b2=optim.b2, eps=optim.eps, weight_decay=optim.weight_decay)


def rate_at(optim: OptimConfig, step: int, total: int, peak: float | None = None) -> float:
    """The learning rate of a step; `peak` replaces the config's for another model on the same schedule."""
    return learning_rate(
        step,
        peak=optim.learning_rate if peak is None else peak,
        warmup_steps=optim.warmup_steps,
        total_steps=total,
        schedule=optim.schedule,
    )


def make_hyper(values: Mapping[str, float]) -> Hyper:
    """Numbers as the float32 scalars that a step takes."""
    return {name: jnp.float32(value) for name, value in values.items()}


def first_state(run: Run, params: Params, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step: `params` themselves, and what else it needs laid over the mesh by the rules."""

    def others(params: Params) -> TrainState:
        return dataclasses.replace(init_state(params, optimizer), params=None)

    shapes: Any = jax.eval_shape(others, params)
    shardings, _ = shardings_for(shapes, run.mesh)
    return dataclasses.replace(jax.jit(others, out_shardings=shardings)(params), params=params)
