"""`linear_logprobs` by tiles of the vocabulary, in plain XLA: the default on every platform.

The forward pass visits each tile of logits once and keeps statistics of each row; the backward pass computes the tiles
again from the saved log-sum-exp (Wijmans et al. 2024, "Cut your losses"). Between the two live a few float32 numbers a
row; neither ever holds [N, V]. On a mesh both run on each device's part, and exchange statistics and gradients.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrlhf.kernels.division import (
    Division,
    combine_vocabulary,
    divide,
    first_word,
    head_spec,
    row_spec,
    spread,
    sum_hidden,
    sum_rows,
    sum_weight,
    whole_spec,
)
from jaxrlhf.kernels.gradient import cotangent_of, fields_of
from jaxrlhf.kernels.inputs import Given, Side
from jaxrlhf.kernels.statistics import Stats
from jaxrlhf.kernels.tiles import Rows, Tiles, into_places, out_of_places, plan_rows, plan_tiles, tile_size
from jaxrlhf.kernels.walk import Gradient, Operands, no_gradient, vocabulary_gradients, vocabulary_stats
from jaxrlhf.types import LogprobOut


class Plan(NamedTuple):
    """How a call is computed; static.

    Attributes:
        want: the outputs.
        over: the division over the mesh.
        tiles: of what one device has.
        trained: sides that take a gradient.
    """

    want: frozenset[str]
    over: Division
    tiles: Tiles
    trained: int


def chunked_logprobs(sides: tuple[Side, ...], given: Given, want: frozenset[str], trained: int) -> LogprobOut:
    """Implements `linear_logprobs` on [N, D] rows with one tile of logits of each model in memory."""
    return _chunked(make_plan(sides, want, trained), sides, given)


def make_plan(sides: tuple[Side, ...], want: frozenset[str], trained: int, *, holds_logits: bool = False) -> Plan:
    """The plan for rows and heads of these shapes, on the mesh that is set.

    Args:
        sides: what logits are made from.
        want: the outputs.
        trained: sides that take a gradient.
        holds_logits: whether those of a whole tile of rows are kept, rather than of one tile.
    """
    hidden, head = sides[0]
    width = math.gcd(*(side.hidden.shape[1] for side in sides[:trained]))
    over, rows, words = divide(hidden.shape[0], head.weight.shape[head.vocab_axis], width)
    size = tile_size()
    if holds_logits:
        fitting = size.held // (4 * words * len(sides)) // 8 * 8
        size = size._replace(rows=max(8, min(size.rows, fitting)))
    return Plan(want, over, plan_tiles(rows, words, head.words, size), trained)


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


def place(sides: tuple[Side, ...], given: Given, plan: Plan) -> Operands:
    """Puts the rows that count first, and says which word the heads here begin with."""
    rows = plan_rows(given.mask, given.targets.shape[0], plan.tiles)
    return Operands(
        sides=tuple(Side(into_places(rows, side.hidden), side.head) for side in sides),
        targets=into_places(rows, given.targets),
        inverse=1.0 / given.temperature,
        offset=first_word(plan.over, plan.tiles.vocab),
        rows=rows,
        tiles=plan.tiles,
        want=plan.want,
    )


def narrowed(sides: tuple[Side, ...], over: Division) -> tuple[Side, ...]:
    """Weights in the dtype of the products, before devices send each other parts of them."""
    if over == Division():
        return sides

    def cast(side: Side) -> Side:
        return Side(side.hidden, dataclasses.replace(side.head, weight=side.head.weight.astype(side.hidden.dtype)))

    return tuple(map(cast, sides))


def input_specs(sides: tuple[Side, ...], given: Given, over: Division) -> tuple[Any, Any]:
    """`PartitionSpec`s of the arguments."""
    by_rows = row_spec(over)
    mask = None if given.mask is None else by_rows
    return tuple(Side(by_rows, head_spec(side.head, over)) for side in sides), Given(by_rows, mask, whole_spec())


def side_specs(sides: tuple[Side, ...], over: Division) -> tuple[Side, ...]:
    """`PartitionSpec`s of gradients."""
    return tuple(Side(row_spec(over), head_spec(side.head, over, over.width)) for side in sides)


def gather_gradient(found: Gradient, side: Side, rows: Rows, over: Division) -> Side:
    """Adds up the gradients of all devices, and gives them the form of `side`, which they belong to."""
    head = side.head
    hidden = out_of_places(rows, found.hidden, side.hidden.shape[0])
    weight = sum_weight(found.weight, 1 - head.vocab_axis, over)
    bias = None if found.bias is None else sum_rows(found.bias, over)
    return Side(sum_hidden(hidden, over), dataclasses.replace(head, weight=weight, bias=bias))
