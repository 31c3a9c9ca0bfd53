"""`linear_logprobs` by tiles of the vocabulary, in plain XLA: the default on every platform.

The forward pass visits each tile of logits once and keeps statistics of each row; the backward pass computes the tiles
again from the saved log-sum-exp (Wijmans et al. 2024, "Cut your losses"). Between the two live a few float32 numbers a
row; neither ever holds [N, V]. On a mesh both run on each device's part, and exchange statistics and gradients.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxrlhf.kernels.division import Division, combine_vocabulary, row_spec, spread
from jaxrlhf.kernels.gradient import cotangent_of, fields_of
from jaxrlhf.kernels.inputs import Given, Side
from jaxrlhf.kernels.plan import Plan, gather_gradient, input_specs, make_plan, narrowed, place, side_specs
from jaxrlhf.kernels.statistics import Stats
from jaxrlhf.kernels.tiles import into_places, out_of_places
from jaxrlhf.kernels.walk import no_gradient, vocabulary_gradients, vocabulary_stats
from jaxrlhf.types import LogprobOut


def chunked_logprobs(sides: tuple[Side, ...], given: Given, want: frozenset[str], trained: int) -> LogprobOut:
    """Implements `linear_logprobs` on [N, D] rows with one tile of logits of each model in memory."""
    return _chunked(make_plan(sides, want, trained), sides, given)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _chunked(plan: Plan, sides: tuple[Side, ...], given: Given) -> LogprobOut:
    return _forward(plan, sides, given)[0]


def _forward(plan: Plan, sides: tuple[Side, ...], given: Given) -> tuple[LogprobOut, Any]:
    specs = input_specs(sides, given, plan.over)
    body = functools.partial(forward, plan)
    out, stats = spread(body, plan.over, specs, row_spec(plan.over))(narrowed(sides, plan.over), given)
    return out, (sides, given, stats)


def _backward(plan: Plan, residuals: Any, cotangent: LogprobOut) -> tuple[tuple[Side, ...], None]:
    sides, given, stats = residuals
    trained = sides[: plan.trained]

    def body(sides: tuple[Side, ...], given: Given, stats: Stats, cotangent: LogprobOut) -> tuple[Side, ...]:
        of = place(sides, given, plan)
        g = into_places(of.rows, cotangent_of(cotangent, given.targets.shape[0]))
        dtype = None if plan.over == Division() else jnp.float32  # what devices add up, or `narrowed` has narrowed
        own = sides[: plan.trained]
        found = vocabulary_gradients(of, stats, g, tuple(no_gradient(side, dtype) for side in of.sides[: plan.trained]))
        return tuple(gather_gradient(each, side, of.rows, plan.over) for each, side in zip(found, own, strict=True))

    by_rows = row_spec(plan.over)
    specs = (*input_specs(sides, given, plan.over), by_rows, by_rows)
    run = spread(body, plan.over, specs, side_specs(trained, plan.over))
    found = run(narrowed(sides, plan.over), given, stats, cotangent)
    found = jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), found, trained)
    return found + (None,) * (len(sides) - len(trained)), None


_chunked.defvjp(_forward, _backward)


def forward(plan: Plan, sides: tuple[Side, ...], given: Given) -> tuple[LogprobOut, Stats]:
    """Outputs [N] of the part that a device has, and the statistics that they are made of, in places."""
    of = place(sides, given, plan)
    stats = combine_vocabulary(vocabulary_stats(of), plan.over)
    return out_of_places(of.rows, fields_of(stats, plan.want), given.targets.shape[0]), stats
