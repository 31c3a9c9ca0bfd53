"""The loop over tiles of rows, for a loss that adds up over tokens: logits once, then the loss, then its gradient.

The logits of one tile of rows, [n, V], are in memory while it is visited, and the gradient by the head is added to once
a tile of rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrlhf.kernels.gradient import cotangent_of, fields_of, logits_gradients
from jaxrlhf.kernels.statistics import Stats, add_stats, no_stats, tile_stats
from jaxrlhf.kernels.tiles import Rows, Tiles, column_tiles, over_rows, take_tile
from jaxrlhf.kernels.walk import (
    Gradient,
    Operands,
    TileOf,
    add_tile,
    close_columns,
    logits_at,
    no_gradient,
    open_columns,
    take_columns,
)
from jaxrlhf.ops.stats import reduce_stacked
from jaxrlhf.types import LogprobOut, Metrics

TokenLossFn = Callable[[LogprobOut, jax.Array, Any, Any], tuple[jax.Array, Metrics]]
"""`loss_fn(out, mask, aux, given) -> (scalar, metrics)` on [1, n] arrays of some of the tokens; adds up over tokens."""


class Extra(NamedTuple):
    """What a loss reads besides the outputs.

    Attributes:
        mask: [N] bool, True where there is a token.
        aux: pytree of [N, ...].
        given: pytree of anything else.
    """

    mask: jax.Array
    aux: Any
    given: Any


class Found(NamedTuple):
    """What visiting rows adds up to."""

    loss: jax.Array
    metrics: Metrics
    gradient: Gradient


def loss_and_gradient(
    loss_fn: TokenLossFn,
    of: Operands,
    extra: Extra,
    rows: Rows,
    tiles: Tiles,
    want: frozenset[str],
    combine: Callable[[Stats], Stats],
) -> Found:
    """The loss, its metrics, and its gradient by the policy's side.

    Args:
        loss_fn: see `TokenLossFn`.
        of: the operands.
        extra: what the loss reads besides, in places.
        rows: the rows that are visited.
        tiles: the plan.
        want: outputs that the loss reads.
        combine: statistics of the whole vocabulary, from those of the part that is here.
    """
    kinds = {"entropy": "entropy" in want, "kl": "kl" in want}
    side = of.sides[0]

    def visit(row_tile: jax.Array | int, found: Found) -> Found:
        def read(stats: Stats, number: jax.Array) -> tuple[Stats, tuple[jax.Array, ...]]:
            columns, weights = take_columns(of, number, tiles)
            logits, hit = logits_at(of, TileOf(row_tile, columns, weights), tiles)
            return add_stats(stats, tile_stats(*logits, fresh=columns.fresh, hit=hit, **kinds)), logits

        start = no_stats(tiles.rows, reference=len(of.sides) > 1, **kinds)
        here, logits = jax.lax.scan(read, start, column_tiles(tiles))
        stats = combine(here)
        own = extra._replace(**take_tile({"mask": extra.mask, "aux": extra.aux}, row_tile, tiles))

        def loss_of(out: LogprobOut) -> tuple[jax.Array, Metrics]:
            return token_loss(loss_fn, out, own)

        loss, pull, metrics = jax.vjp(loss_of, fields_of(stats, want), has_aux=True)
        g = cotangent_of(pull(jnp.ones(()))[0], tiles.rows)

        def add(gradient: Gradient, at: tuple[jax.Array, tuple[jax.Array, ...]]) -> tuple[Gradient, None]:
            number, logits = at
            columns, weights = take_columns(of, number, tiles)
            targets = take_tile(of.targets, row_tile, tiles)
            hit = columns.fresh & (columns.words == targets[:, None])
            slope = logits_gradients(*logits, hit=hit, stats=stats, g=g, want=want)[0]
            part = open_columns(gradient, side.head, columns, tiles)
            tile = TileOf(row_tile, columns, weights)
            part = add_tile(part, slope, logits[0], side, weights[0], of.inverse, tile, tiles)
            return close_columns(gradient, part, side.head, columns), None

        gradient, _ = jax.lax.scan(add, found.gradient, (column_tiles(tiles), logits))
        return Found(found.loss + loss, merge(found.metrics, metrics), gradient)

    zeros = no_gradient(side, jnp.float32)
    return over_rows(visit, Found(*no_loss(loss_fn, extra, tiles.rows, want), zeros), rows, tiles)


def token_loss(loss_fn: TokenLossFn, out: LogprobOut, extra: Extra) -> tuple[jax.Array, Metrics]:
    """Calls a loss on [n] tokens; where the mask is False it finds zeros, in the outputs and in aux."""
    mask = extra.mask

    def kept(leaf: jax.Array) -> jax.Array:
        return jnp.where(mask.reshape(-1, *(1 for _ in leaf.shape[1:])), leaf, jnp.zeros((), leaf.dtype))[None]

    return loss_fn(jax.tree.map(kept, out), mask[None], jax.tree.map(kept, extra.aux), extra.given)


def no_loss(loss_fn: TokenLossFn, extra: Extra, rows: int, want: frozenset[str]) -> tuple[jax.Array, Metrics]:
    """The loss and the metrics of no tokens, which change nothing they are added to."""
    # In the order of the fields: that of a set differs between processes, and so would their programs.
    zeros = LogprobOut(*(jnp.zeros(rows, jnp.float32) if name in want else None for name in LogprobOut._fields))
    blank = jax.tree.map(lambda leaf: jnp.zeros((rows, *leaf.shape[1:]), leaf.dtype), extra.aux)
    return token_loss(loss_fn, zeros, Extra(jnp.zeros(rows, bool), blank, extra.given))


def merge(left: Metrics, right: Metrics) -> Metrics:
    """Metrics of both."""
    return reduce_stacked(jax.tree.map(lambda a, b: jnp.stack([a, b]), left, right))
