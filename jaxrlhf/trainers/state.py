"""What every trainer makes of its config: the optimizer, rates, hyper-parameters, the first state."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxrlhf.optim import adamw_direction, learning_rate
from jaxrlhf.sharding.rules import shardings_for
from jaxrlhf.steps.update import init_state
from jaxrlhf.trainers.config import OptimConfig
from jaxrlhf.trainers.run import Run
from jaxrlhf.types import Hyper, Params, TrainState


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
