"""The one train step: `step(state, frozen, batch, hyper) -> (state, metrics)`, for every method.

A method is a `loss_fn(params, frozen, micro, totals, hyper, key) -> (scalar, metrics)` and a `totals_fn(batch)`. Totals
(token counts, pair counts) depend on the batch and not on the parameters, so they are summed over the whole batch
before the scan over micro-batches; each micro-batch divides by them and the parts add up. N micro-batches then equal
one big batch, and eight devices equal one, in loss and in gradient.

Where rows are coupled by something of the whole batch that does depend on the parameters but takes no gradient (KTO's
KL), the method also has a `coupling(params, frozen, parts, hyper)`, which is computed at the same place; the loss finds
the result beside the totals.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxrlhf.ops.stats import Mean, Sum, reduce_stacked
from jaxrlhf.types import Hyper, Metrics, Params, TrainState

_LOSS = 2**31 - 2
"""Folded into the keys that losses get, so that they are not those of sampling and of the order of rows."""

LossFn = Callable[[Params, Any, Any, Any, Hyper, jax.Array | None], tuple[jax.Array, Metrics]]
TotalsFn = Callable[[Any], Any]
CouplingFn = Callable[[Params, Any, Any, Hyper], Any]
StepFn = Callable[[TrainState, Any, Any, Hyper], tuple[TrainState, Metrics]]


def init_state(params: Params, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step."""
    return TrainState(params=params, opt_state=optimizer.init(params), step=jnp.zeros((), jnp.int32))


def make_update(
    loss_fn: LossFn,
    totals_fn: TotalsFn,
    optimizer: optax.GradientTransformation,
    *,
    coupling: CouplingFn | None = None,
    micro_batches: int = 1,
    seed: int = 0,
) -> StepFn:
    """Builds the train step of a method; the caller jits it and donates the state.

    The gradient is clipped to the norm `hyper["max_grad_norm"]`, as PyTorch does it (norm + 1e-6), and the optimizer's
    direction is multiplied by `hyper["learning_rate"]`. Where the loss or the norm of the gradient is not finite, the
    parameters and the optimizer state stay as they are and `skipped` counts 1; `step` advances all the same, since
    data, keys and rates are functions of it.

    Args:
        loss_fn: loss of a micro-batch, divided by the totals of the whole batch.
        totals_fn: the totals of a batch.
        optimizer: gives the direction, without the rate.
        coupling: computes what else the loss must know of the whole batch; the loss then receives `(totals, coupled)`
            as its totals. It is given the micro-batches stacked along a leading axis, to take them one after another.
        micro_batches: into how many parts, one after another, a batch is cut; divides its rows.
        seed: of the keys that `loss_fn` receives: a function of (seed, step, micro-batch).

    Returns:
        `step(state, frozen, batch, hyper) -> (state, metrics)`; metrics are the loss's own and `grad_norm`, `skipped`.
    """
    known_of = _known(totals_fn, coupling, micro_batches)

    def step(state: TrainState, frozen: Any, batch: Any, hyper: Hyper) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), state.step), _LOSS)
        known = known_of(state.params, frozen, batch, hyper)
        loss, grads, metrics = _gradient(loss_fn, state.params, frozen, batch, known, hyper, key)
        norm = optax.tree.norm(grads)
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)

        def apply(operand: tuple[Params, Any, Params]) -> tuple[Params, Any]:
            params, opt_state, grads = operand
            scale = jnp.minimum(1.0, hyper["max_grad_norm"] / (norm + 1e-6))
            grads = jax.tree.map(lambda g: g * scale, grads)
            direction, opt_state = optimizer.update(grads, opt_state, params)
            return jax.tree.map(lambda p, d: p - hyper["learning_rate"] * d, params, direction), opt_state

        def keep(operand: tuple[Params, Any, Params]) -> tuple[Params, Any]:
            return operand[0], operand[1]

        params, opt_state = jax.lax.cond(finite, apply, keep, (state.params, state.opt_state, grads))
        metrics = {
            **metrics,
            "grad_norm": Mean(norm, jnp.ones(())),
            "skipped": Sum(jnp.where(finite, 0.0, 1.0)),
        }
        return TrainState(params=params, opt_state=opt_state, step=state.step + 1), metrics

    def _gradient(loss_fn: LossFn, params, frozen, batch, totals, hyper, key):
        differentiate = jax.value_and_grad(loss_fn, has_aux=True)
        if micro_batches == 1:
            (loss, metrics), grads = differentiate(params, frozen, batch, totals, hyper, jax.random.fold_in(key, 0))
            return loss, grads, metrics

        def add(sums, part):
            index, micro = part
            (loss, metrics), grads = differentiate(params, frozen, micro, totals, hyper, jax.random.fold_in(key, index))
            return jax.tree.map(jnp.add, sums, (loss, grads)), metrics

        start = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, params))
        parts = (jnp.arange(micro_batches), split_rows(batch, micro_batches))
        (loss, grads), metrics = jax.lax.scan(add, start, parts)
        return loss, grads, reduce_stacked(metrics)

    return step


def update_if(
    go: jax.Array, step: StepFn, state: TrainState, frozen: Any, batch: Any, hyper: Hyper
) -> tuple[TrainState, Metrics]:
    """Takes a step, or leaves it out: then only `state.step` advances, and the metrics have weight 0.

    Args:
        go: bool scalar.
        step: see `make_update`.
        state: as `step` takes it.
        frozen: as `step` takes it.
        batch: as `step` takes it.
        hyper: as `step` takes it.
    """
    _, shapes = jax.eval_shape(step, state, frozen, batch, hyper)

    def leave_out() -> tuple[TrainState, Metrics]:
        nothing = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)
        return dataclasses.replace(state, step=state.step + 1), nothing

    return jax.lax.cond(go, lambda: step(state, frozen, batch, hyper), leave_out)


def split_rows(batch: Any, parts: int) -> Any:
    """Cuts the rows of a batch into parts: leaves [B, ...] become [parts, B / parts, ...].

    Part i takes rows i, i + parts, ...: a device that holds neighbouring rows holds its share of each part.

    Raises:
        ValueError: if the number of rows is no multiple of `parts`.
    """

    def split(leaf: jax.Array) -> jax.Array:
        if leaf.shape[0] % parts:
            raise ValueError(f"a batch of {leaf.shape[0]} rows cannot be cut into {parts} equal micro-batches")
        return jnp.swapaxes(leaf.reshape(-1, parts, *leaf.shape[1:]), 0, 1)

    return jax.tree.map(split, batch)


def join_rows(parts: Any) -> Any:
    """The inverse of `split_rows`: leaves [parts, B / parts, ...] become [B, ...] in the order they had."""
    return jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1).reshape(-1, *leaf.shape[2:]), parts)


def make_evaluate(
    loss_fn: LossFn, totals_fn: TotalsFn, coupling: CouplingFn | None = None
) -> Callable[[Params, Any, Any, Hyper], Metrics]:
    """Builds `evaluate(params, frozen, batch, hyper) -> metrics`: the loss's metrics, no key, nothing updated."""
    known_of = _known(totals_fn, coupling, 1)

    def evaluate(params: Params, frozen: Any, batch: Any, hyper: Hyper) -> Metrics:
        known = known_of(params, frozen, batch, hyper)
        return loss_fn(params, frozen, batch, known, hyper, None)[1]

    return evaluate


def _known(totals_fn: TotalsFn, coupling: CouplingFn | None, parts: int) -> Callable[[Params, Any, Any, Hyper], Any]:
    """What a loss is told of the whole batch: its totals, and beside them what couples its rows, if anything does."""

    def known(params: Params, frozen: Any, batch: Any, hyper: Hyper) -> Any:
        if coupling is None:
            return totals_fn(batch)
        return totals_fn(batch), coupling(params, frozen, split_rows(batch, parts), hyper)

    return known
