"""The loop over tiles: statistics of rows, and gradients by hidden states and heads.

Tiles of columns are the outer loop, so each part of a head's gradient is summed over all rows in float32, rounded once
and written once.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrlhf.kernels.gradient import (
    Cotangent,
    before_softcap,
    by_hidden,
    by_weight,
    logits_gradients,
)
from jaxrlhf.kernels.inputs import Side
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
    tile_logits,
    tile_weight,
)
from jaxrlhf.types import Head


class Operands(NamedTuple):
    """What logits are made from.

    Attributes:
        sides: of the policy, and of the reference if there is one; hidden states [places, D], and the part of the head
            that is here. Rows are in their places (see `tiles.Rows`).
        targets: [places] int32, words.
        inverse: of the temperature, float32 scalar. A quotient would be compiled to a product in some programs and not
            in others, and a log-probability would differ between them in its last digit.
        offset: the word of the heads' first row.
    """

    sides: tuple[Side, ...]
    targets: jax.Array
    inverse: jax.Array
    offset: jax.Array | int


class Gradient(NamedTuple):
    """A gradient by one `Side`: [places, D] float32 by hidden states; weight and bias as `no_gradient` made them."""

    hidden: jax.Array
    weight: jax.Array
    bias: jax.Array | None


class TileOf(NamedTuple):
    """One tile of logits.

    Attributes:
        row_tile: number of the tile of rows.
        columns: its columns.
        weights: what `tile_weight` took of each side's head.
    """

    row_tile: jax.Array | int
    columns: Columns
    weights: tuple[jax.Array, ...]


def vocabulary_stats(of: Operands, rows: Rows, tiles: Tiles, want: frozenset[str]) -> Stats:
    """Statistics [places] of the vocabulary that is here; those of places in no visited tile are `no_stats`."""
    kinds = {"entropy": "entropy" in want, "kl": "kl" in want}

    def visit_columns(stats: Stats, number: jax.Array) -> tuple[Stats, None]:
        columns, weights = take_columns(of, number, tiles)

        def visit(row_tile: jax.Array | int, stats: Stats) -> Stats:
            logits, hit = logits_at(of, TileOf(row_tile, columns, weights), tiles)
            seen = take_tile(stats, row_tile, tiles)
            own = tile_stats(*logits, fresh=columns.fresh, hit=hit, **kinds)
            return put_tile(stats, add_stats(seen, own), row_tile, tiles)

        return over_rows(visit, stats, rows, tiles), None

    start = no_stats(of.targets.shape[0], reference=len(of.sides) > 1, **kinds)
    return jax.lax.scan(visit_columns, start, column_tiles(tiles))[0]


def vocabulary_gradients(
    of: Operands,
    rows: Rows,
    tiles: Tiles,
    want: frozenset[str],
    stats: Stats,
    g: Cotangent,
    *,
    trained: int,
    dtype: Any = None,
) -> tuple[Gradient, ...]:
    """Gradients by the first `trained` sides.

    Args:
        of: as for `vocabulary_stats`.
        rows: as for `vocabulary_stats`.
        tiles: as for `vocabulary_stats`.
        want: outputs that there are cotangents of.
        stats: of the whole vocabulary.
        g: cotangents of the outputs, [places].
        trained: 1 for the policy's gradient alone, 2 for the reference's too.
        dtype: see `no_gradient`.
    """
    sides = of.sides[:trained]

    def visit_columns(found: tuple[Gradient, ...], number: jax.Array) -> tuple[tuple[Gradient, ...], None]:
        columns, weights = take_columns(of, number, tiles)

        def visit(row_tile: jax.Array | int, parts: tuple[Gradient, ...]) -> tuple[Gradient, ...]:
            tile = TileOf(row_tile, columns, weights)
            logits, hit = logits_at(of, tile, tiles)
            now, own = take_tile((stats, g), row_tile, tiles)
            slopes = logits_gradients(*logits, hit=hit, stats=now, g=own, want=want)
            return tuple(
                add_tile(part, slope, z, side, weight, of.inverse, tile, tiles)
                for part, slope, z, side, weight in zip(parts, slopes, logits, sides, weights, strict=False)
            )

        parts = tuple(open_columns(own, side.head, columns, tiles) for own, side in zip(found, sides, strict=True))
        parts = over_rows(visit, parts, rows, tiles)
        whole = zip(found, parts, sides, strict=True)
        return tuple(close_columns(own, part, side.head, columns) for own, part, side in whole), None

    start = tuple(no_gradient(side, dtype) for side in sides)
    return jax.lax.scan(visit_columns, start, column_tiles(tiles))[0]


def take_columns(of: Operands, number: jax.Array, tiles: Tiles) -> tuple[Columns, tuple[jax.Array, ...]]:
    """A tile of columns, and the part of each side's weight that it needs."""
    columns = columns_of(number, tiles, of.offset)
    return columns, tuple(tile_weight(side.head, columns.first, tiles, side.hidden.dtype) for side in of.sides)


def logits_at(of: Operands, tile: TileOf, tiles: Tiles) -> tuple[tuple[jax.Array, ...], jax.Array]:
    """The logits of each side, and where the targets are, [n, columns] all."""
    logits = tuple(
        tile_logits(
            take_tile(side.hidden, tile.row_tile, tiles), side.head, weight, of.inverse, tile.columns.first, tiles
        )
        for side, weight in zip(of.sides, tile.weights, strict=True)
    )
    targets = take_tile(of.targets, tile.row_tile, tiles)
    return logits, tile.columns.fresh & (tile.columns.words == targets[:, None])


def no_gradient(side: Side, dtype: Any = None) -> Gradient:
    """Zeros; `dtype` is that of weight and bias, None their own, which is enough where every part is written once."""
    weight, bias = side.head.weight, side.head.bias
    return Gradient(
        jnp.zeros(side.hidden.shape, jnp.float32),
        jnp.zeros_like(weight, dtype=dtype),
        None if bias is None else jnp.zeros_like(bias, dtype=dtype),
    )


def open_columns(found: Gradient, head: Head, columns: Columns, tiles: Tiles) -> Gradient:
    """The parts of weight and bias that a tile of columns adds to, in float32."""
    weight = jax.lax.dynamic_slice_in_dim(found.weight, columns.first, tiles.columns, head.vocab_axis)
    bias = None if found.bias is None else jax.lax.dynamic_slice_in_dim(found.bias, columns.first, tiles.columns)
    return Gradient(found.hidden, *jax.tree.map(lambda leaf: leaf.astype(jnp.float32), (weight, bias)))


def close_columns(found: Gradient, part: Gradient, head: Head, columns: Columns) -> Gradient:
    """Writes what `open_columns` took."""

    def put(whole: jax.Array, own: jax.Array, axis: int) -> jax.Array:
        return jax.lax.dynamic_update_slice_in_dim(whole, own.astype(whole.dtype), columns.first, axis)

    bias = None if found.bias is None or part.bias is None else put(found.bias, part.bias, 0)
    return Gradient(part.hidden, put(found.weight, part.weight, head.vocab_axis), bias)


def add_tile(
    part: Gradient,
    slope: jax.Array,
    z: jax.Array,
    side: Side,
    weight: jax.Array,
    inverse: jax.Array,
    tile: TileOf,
    tiles: Tiles,
) -> Gradient:
    """Adds what one tile of logits, and its gradient, give to an opened gradient."""
    draw = before_softcap(slope, z, side.head, inverse, tile.columns.fresh)
    own = take_tile(part.hidden, tile.row_tile, tiles) + by_hidden(draw, weight, side.head)
    return Gradient(
        hidden=put_tile(part.hidden, own, tile.row_tile, tiles),
        weight=part.weight + by_weight(draw, take_tile(side.hidden, tile.row_tile, tiles), side.head),
        bias=None if part.bias is None else part.bias + jnp.sum(draw, axis=0),
    )
