"""How a call is computed: its tiles, what of its arguments and gradients each device of a mesh has."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

from jaxrlhf.kernels.division import (
    Division,
    divide,
    first_word,
    head_spec,
    row_spec,
    sum_hidden,
    sum_rows,
    sum_weight,
    whole_spec,
)
from jaxrlhf.kernels.inputs import Given, Side
from jaxrlhf.kernels.tiles import Rows, Tiles, into_places, out_of_places, plan_rows, plan_tiles, tile_size
from jaxrlhf.kernels.walk import Gradient, Operands


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
