"""The loop over tiles: statistics of rows, and gradients by hidden states and heads.

Tiles of columns are the outer loop, so each part of a head's gradient is summed over all rows in float32, rounded once
and written once.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrlhf.kernels.gradient import Cotangent, logits_gradients
from jaxrlhf.kernels.inputs import Side
from jaxrlhf.kernels.logits import before_softcap, by_hidden, by_weight, tile_logits, tile_weight
from jaxrlhf.kernels.statistics import Stats, add_stats, no_stats, tile_stats
from jaxrlhf.kernels.tiles import (
    Columns,
    Rows,
    Tiles,
    column_tiles,
    columns_of,
    over_rows,
    put_tile,
    take_tile,
)


class Operands(NamedTuple):
    """What logits are made from, and what of them is visited.

    Attributes:
        sides: of the policy, and of the reference if there is one; hidden states [places, D], and the part of the head
            that is here. Rows are in their places (see `tiles.Rows`).
        targets: [places] int32, words.
        inverse: of the temperature, float32 scalar. A quotient would be compiled to a product in some programs and not
            in others, and a log-probability would differ between them in its last digit.
        offset: the word of the heads' first row.
        rows: the rows that are visited.
        tiles: the plan; static.
        want: the outputs; static.
    """

    sides: tuple[Side, ...]
    targets: jax.Array
    inverse: jax.Array
    offset: jax.Array | int
    rows: Rows
    tiles: Tiles
    want: frozenset[str]


class Gradient(NamedTuple):
    """A gradient by one `Side`: [places, D] float32 by hidden states; weight and bias as `no_gradient` made them."""

    hidden: jax.Array
    weight: jax.Array
    bias: jax.Array | None


class Strip(NamedTuple):
    """A tile of columns.

    Attributes:
        columns: which.
        weights: the part of each side's weight that it needs.
    """

    columns: Columns
    weights: tuple[jax.Array, ...]


def vocabulary_stats(of: Operands) -> Stats:
    """Statistics [places] of the vocabulary that is here; those of places in no visited tile are `nothing_seen`."""

    def visit_strip(stats: Stats, number: jax.Array) -> tuple[Stats, None]:
        strip = take_strip(of, number)

        def visit(row_tile: jax.Array | int, stats: Stats) -> Stats:
            seen, _ = read_tile(of, strip, row_tile, take_tile(stats, row_tile, of.tiles))
            return put_tile(stats, seen, row_tile, of.tiles)

        return over_rows(visit, stats, of.rows, of.tiles), None

    return jax.lax.scan(visit_strip, nothing_seen(of, of.targets.shape[0]), column_tiles(of.tiles))[0]


def vocabulary_gradients(of: Operands, stats: Stats, g: Cotangent, start: tuple[Gradient, ...]) -> tuple[Gradient, ...]:
    """Gradients by the policy's side and, if `start` has two, the reference's.

    Args:
        of: the operands.
        stats: of the whole vocabulary.
        g: cotangents of the outputs, [places].
        start: `no_gradient` of each side that takes one.
    """

    def visit_strip(found: tuple[Gradient, ...], number: jax.Array) -> tuple[tuple[Gradient, ...], None]:
        strip = take_strip(of, number)

        def visit(row_tile: jax.Array | int, parts: tuple[Gradient, ...]) -> tuple[Gradient, ...]:
            logits = logits_at(of, strip, row_tile)
            return add_tile(parts, of, strip, row_tile, logits, *take_tile((stats, g), row_tile, of.tiles))

        parts = over_rows(visit, open_strip(found, of, strip), of.rows, of.tiles)
        return close_strip(found, parts, of, strip), None

    return jax.lax.scan(visit_strip, start, column_tiles(of.tiles))[0]


def take_strip(of: Operands, number: jax.Array) -> Strip:
    """A tile of columns, by its number."""
    columns = columns_of(number, of.tiles, of.offset)
    weights = (tile_weight(side.head, columns.first, of.tiles.columns, side.hidden.dtype) for side in of.sides)
    return Strip(columns, tuple(weights))


def nothing_seen(of: Operands, rows: int) -> Stats:
    """The statistics of so many rows before any tile was read."""
    return no_stats(rows, reference=len(of.sides) > 1, entropy="entropy" in of.want, kl="kl" in of.want)


def read_tile(
    of: Operands, strip: Strip, row_tile: jax.Array | int, seen: Stats
) -> tuple[Stats, tuple[jax.Array, ...]]:
    """Adds a tile to the statistics [n] of its rows; also returns its logits, [n, columns] of each side."""
    logits, fresh = logits_at(of, strip, row_tile), strip.columns.fresh
    kinds = {"entropy": "entropy" in of.want, "kl": "kl" in of.want}
    own = tile_stats(*logits, fresh=fresh, hit=_hit(of, strip, row_tile), **kinds)
    return add_stats(seen, own), logits


def logits_at(of: Operands, strip: Strip, row_tile: jax.Array | int) -> tuple[jax.Array, ...]:
    """The logits [n, columns] of each side."""
    hidden = take_tile([side.hidden for side in of.sides], row_tile, of.tiles)
    return tuple(
        tile_logits(own, side.head, weight, of.inverse, strip.columns.first, of.tiles.columns)
        for own, side, weight in zip(hidden, of.sides, strip.weights, strict=True)
    )


def add_tile(
    parts: tuple[Gradient, ...],
    of: Operands,
    strip: Strip,
    row_tile: jax.Array | int,
    logits: tuple[jax.Array, ...],
    stats: Stats,
    g: Cotangent,
) -> tuple[Gradient, ...]:
    """Adds what one tile gives to opened gradients.

    Args:
        parts: of the sides that take a gradient, from `open_strip`.
        of: the operands.
        strip: the tile's columns.
        row_tile: the number of its rows.
        logits: [n, columns] of each side.
        stats: [n], of the whole vocabulary.
        g: [n], cotangents of the outputs.
    """
    slopes = logits_gradients(*logits, hit=_hit(of, strip, row_tile), stats=stats, g=g, want=of.want)
    added = []
    for part, side, weight, z, slope in zip(parts, of.sides, strip.weights, logits, slopes, strict=False):
        draw = before_softcap(slope, z, side.head, of.inverse, strip.columns.fresh)
        hidden, own = take_tile((side.hidden, part.hidden), row_tile, of.tiles)
        by_rows = put_tile(part.hidden, own + by_hidden(draw, weight, side.head), row_tile, of.tiles)
        bias = None if part.bias is None else part.bias + jnp.sum(draw, axis=0)
        added.append(Gradient(by_rows, part.weight + by_weight(draw, hidden, side.head), bias))
    return tuple(added)


def no_gradient(side: Side, dtype: Any = None) -> Gradient:
    """Zeros; `dtype` is that of weight and bias, None their own, which is enough where every part is written once."""
    weight, bias = side.head.weight, side.head.bias
    return Gradient(
        jnp.zeros(side.hidden.shape, jnp.float32),
        jnp.zeros_like(weight, dtype=dtype),
        None if bias is None else jnp.zeros_like(bias, dtype=dtype),
    )


def open_strip(found: tuple[Gradient, ...], of: Operands, strip: Strip) -> tuple[Gradient, ...]:
    """The parts of weight and bias that a tile of columns adds to, in float32."""

    def take(own: Gradient, side: Side) -> Gradient:
        first, count = strip.columns.first, of.tiles.columns
        weight = jax.lax.dynamic_slice_in_dim(own.weight, first, count, side.head.vocab_axis)
        bias = None if own.bias is None else jax.lax.dynamic_slice_in_dim(own.bias, first, count)
        return Gradient(own.hidden, *jax.tree.map(lambda leaf: leaf.astype(jnp.float32), (weight, bias)))

    return tuple(take(own, side) for own, side in zip(found, of.sides, strict=False))


def close_strip(
    found: tuple[Gradient, ...], parts: tuple[Gradient, ...], of: Operands, strip: Strip
) -> tuple[Gradient, ...]:
    """Writes what `open_strip` took."""

    def put(whole: jax.Array, own: jax.Array, axis: int) -> jax.Array:
        return jax.lax.dynamic_update_slice_in_dim(whole, own.astype(whole.dtype), strip.columns.first, axis)

    def write(whole: Gradient, part: Gradient, side: Side) -> Gradient:
        bias = None if whole.bias is None or part.bias is None else put(whole.bias, part.bias, 0)
        return Gradient(part.hidden, put(whole.weight, part.weight, side.head.vocab_axis), bias)

    return tuple(write(*each) for each in zip(found, parts, of.sides, strict=False))


def _hit(of: Operands, strip: Strip, row_tile: jax.Array | int) -> jax.Array:
    """Where the targets are, [n, columns] bool."""
    targets = take_tile(of.targets, row_tile, of.tiles)
    return strip.columns.fresh & (strip.columns.words == targets[:, None])
