"""Tiles of the [N, V] logits that are never held whole: how large they are, which rows and columns they hold.

Rows that a mask leaves out are put last and never visited (`Rows`). The last tile of columns overlaps the one before
instead of padding the weight, which would copy it; columns that the tile before held are not `fresh`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from jaxrlhf.sharding.mesh import target_platform

T = TypeVar("T")


class TileSize(NamedTuple):
    """Largest tile.

    Attributes:
        rows: tokens.
        columns: words.
        held: most bytes of logits that are kept at a time where those of a whole row are.
    """

    rows: int
    columns: int
    held: int = 64 * 2**20


TILES = {"cpu": TileSize(256, 512), "gpu": TileSize(4096, 4096, 2**29), "tpu": TileSize(4096, 4096, 2**29)}
"""Platform -> tile. On a CPU it stays in a core's cache; on the others it must keep the matrix units busy."""


def tile_size() -> TileSize:
    """The tile of the platform that is compiled for."""
    platform = target_platform()
    return TILES["gpu" if platform in ("cuda", "rocm") else platform]


class Tiles(NamedTuple):
    """A division of [N, V] into tiles; static.

    Attributes:
        rows: of a tile.
        row_tiles: that hold all rows; their last rows may be empty.
        columns: of a tile.
        vocab: rows of the head's weight that are here, padding among them.
        vocab_size: real words of the whole vocabulary.
    """

    rows: int
    row_tiles: int
    columns: int
    vocab: int
    vocab_size: int


def plan_tiles(rows: int, vocab: int, vocab_size: int, size: TileSize) -> Tiles:
    """Tiles of nearly equal height for that many rows and words."""
    height = rows
    if rows > size.rows:
        height = _round_up(-(-rows // -(-rows // size.rows)), 8)
    return Tiles(height, max(1, -(-rows // max(height, 1))), min(vocab, size.columns), vocab, vocab_size)


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


class Rows(NamedTuple):
    """The rows that are visited, in tiles.

    Attributes:
        order: [row_tiles * rows] int32, the number of the row at each place, N where a place is empty; None if rows
            stay as they are.
        tiles: number of tiles to visit, int or int32 scalar.
    """

    order: jax.Array | None
    tiles: jax.Array | int


def plan_rows(mask: jax.Array | None, rows: int, tiles: Tiles) -> Rows:
    """Puts the rows that a mask [N] keeps first."""
    places = tiles.rows * tiles.row_tiles
    if mask is None:
        order = None if places == rows else jnp.minimum(jnp.arange(places, dtype=jnp.int32), rows)
        return Rows(order, tiles.row_tiles)
    kept = jnp.sum(mask, dtype=jnp.int32)
    order = jnp.argsort(~mask, stable=True).astype(jnp.int32)
    order = jnp.where(jnp.arange(rows, dtype=jnp.int32) < kept, order, rows)
    order = jnp.pad(order, (0, places - rows), constant_values=rows)
    return Rows(order, -(-kept // tiles.rows))


def into_places(rows: Rows, values: T) -> T:
    """Leaves [N, ...] to [places, ...], 0 at empty places."""
    if rows.order is None:
        return values
    return jax.tree.map(lambda leaf: leaf.at[rows.order].get(mode="fill", fill_value=0), values)


def out_of_places(rows: Rows, values: T, count: int) -> T:
    """Leaves [places, ...] back to [N, ...], 0 at rows that have no place."""
    if rows.order is None:
        return values

    def scatter(leaf: jax.Array) -> jax.Array:
        return jnp.zeros((count, *leaf.shape[1:]), leaf.dtype).at[rows.order].set(leaf, mode="drop")

    return jax.tree.map(scatter, values)


def take_tile(values: T, tile: jax.Array | int, tiles: Tiles) -> T:
    """Rows of one tile: leaves [places, ...] to [rows, ...]."""
    if tiles.row_tiles == 1:
        return values
    start = tile * tiles.rows
    return jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, start, tiles.rows), values)


def put_tile(values: T, part: T, tile: jax.Array | int, tiles: Tiles) -> T:
    """The inverse of `take_tile`: writes the rows of one tile."""
    if tiles.row_tiles == 1:
        return part
    start = tile * tiles.rows

    def put(leaf: jax.Array, own: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice_in_dim(leaf, own, start, 0)

    return jax.tree.map(put, values, part)


def over_rows(visit: Callable[[Any, T], T], carry: T, rows: Rows, tiles: Tiles) -> T:
    """Visits the tiles of rows that hold any: `visit(tile, carry) -> carry`."""
    if tiles.row_tiles == 1:
        if isinstance(rows.tiles, int):
            return visit(0, carry)
        return jax.lax.cond(rows.tiles > 0, lambda c: visit(0, c), lambda c: c, carry)
    return jax.lax.fori_loop(0, rows.tiles, visit, carry)


def column_tiles(tiles: Tiles) -> jax.Array:
    """The numbers of the tiles of columns, int32."""
    return jnp.arange(-(-tiles.vocab // tiles.columns), dtype=jnp.int32)


class Columns(NamedTuple):
    """One tile of columns.

    Attributes:
        first: the first of the head's rows in it, int32 scalar.
        words: [1, columns] int32, the words that they stand for.
        fresh: [1, columns] bool, those that are words and were not in the tile before.
    """

    first: jax.Array
    words: jax.Array
    fresh: jax.Array


def columns_of(tile: jax.Array, tiles: Tiles, offset: jax.Array | int = 0) -> Columns:
    """The columns of a tile; `offset` is the word of the head's first row."""
    first = jnp.minimum(tile * tiles.columns, tiles.vocab - tiles.columns)
    rows = first + jnp.arange(tiles.columns, dtype=jnp.int32)[None, :]
    words = rows + offset
    return Columns(first, words, (rows >= tile * tiles.columns) & (words < tiles.vocab_size))
