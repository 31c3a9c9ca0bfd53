"""The loop over tiles of rows, for a loss that adds up over tokens: logits once, then the loss, then its gradient.

The logits of one tile of rows, [n, V], are in memory while it is visited, and the gradient by the head is added to once
a tile of rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrlhf.kernels.gradient import cotangent_of, fields_of
from jaxrlhf.kernels.statistics import Stats
from jaxrlhf.kernels.tiles import column_tiles, over_rows, take_tile
from jaxrlhf.kernels.walk import (
    Gradient,
    Operands,
    add_tile,
    close_strip,
    no_gradient,
    nothing_seen,
    open_strip,
    read_tile,
    take_strip,
)
from jaxrlhf.ops.masked import in_parts
from jaxrlhf.ops.stats import is_metric, reduce_stacked
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


def loss_and_gradient(loss_fn: TokenLossFn, of: Operands, extra: Extra, combine: Callable[[Stats], Stats]) -> Found:
    """The loss, its metrics, and its gradient by the policy's side.

    Args:
        loss_fn: see `TokenLossFn`.
        of: the operands.
        extra: what the loss reads besides, in places.
        combine: statistics of the whole vocabulary, from those of the part that is here.
    """
    height, numbers = of.tiles.rows, column_tiles(of.tiles)

    def visit(row_tile: jax.Array | int, found: Found) -> Found:
        def read(seen: Stats, number: jax.Array) -> tuple[Stats, tuple[jax.Array, ...]]:
            return read_tile(of, take_strip(of, number), row_tile, seen)

        here, logits = jax.lax.scan(read, nothing_seen(of, height), numbers)
        stats = combine(here)
        mask, aux = take_tile((extra.mask, extra.aux), row_tile, of.tiles)

        def loss_of(out: LogprobOut) -> tuple[jax.Array, Metrics]:
            return call_loss(loss_fn, out, Extra(mask, aux, extra.given))

        loss, pull, metrics = jax.vjp(loss_of, fields_of(stats, of.want), has_aux=True)
        g = cotangent_of(pull(jnp.ones(()))[0], height)

        def add(whole: tuple[Gradient, ...], at: tuple[jax.Array, Any]) -> tuple[tuple[Gradient, ...], None]:
            number, logits = at
            strip = take_strip(of, number)
            parts = add_tile(open_strip(whole, of, strip), of, strip, row_tile, logits, stats, g)
            return close_strip(whole, parts, of, strip), None

        (gradient,), _ = jax.lax.scan(add, (found.gradient,), (numbers, logits))
        return Found(found.loss + loss, merge(found.metrics, metrics), gradient)

    start = Found(*no_loss(loss_fn, extra, height, of.want), no_gradient(of.sides[0], jnp.float32))
    return over_rows(visit, start, of.rows, of.tiles)


def call_loss(loss_fn: TokenLossFn, out: LogprobOut, extra: Extra) -> tuple[jax.Array, Metrics]:
    """Calls a loss on [n] tokens; where the mask is False it finds zeros, in the outputs and in aux."""
    mask = extra.mask

    def kept(leaf: jax.Array) -> jax.Array:
        return jnp.where(mask.reshape(-1, *(1 for _ in leaf.shape[1:])), leaf, jnp.zeros((), leaf.dtype))[None]

    with in_parts():
        return _checked(loss_fn(jax.tree.map(kept, out), mask[None], jax.tree.map(kept, extra.aux), extra.given))


def _checked(found: Any) -> tuple[jax.Array, Metrics]:
    """What a loss returned, if it is a float32 scalar and metrics that add up."""
    wanted = "loss_fn must return (loss, metrics), the loss a float32 scalar, metrics a dict of ops.stats classes"
    if not (isinstance(found, tuple) and len(found) == 2 and isinstance(found[1], dict)):
        raise ValueError(f"{wanted}; it returned {type(found).__name__}")
    loss, metrics = jnp.asarray(found[0]), found[1]
    if loss.shape != () or loss.dtype != jnp.float32:
        raise ValueError(f"{wanted}; its loss is {loss.dtype}{list(loss.shape)}")
    if others := sorted(name for name, value in metrics.items() if not is_metric(value)):
        raise ValueError(f"{wanted}; its metrics {others} are none: mean_of(values, mask), say, makes one")
    return loss, metrics


def no_loss(loss_fn: TokenLossFn, extra: Extra, rows: int, want: frozenset[str]) -> tuple[jax.Array, Metrics]:
    """The loss and the metrics of no tokens, which change nothing they are added to."""
    # In the order of the fields: that of a set differs between processes, and so would their programs.
    zeros = LogprobOut(*(jnp.zeros(rows, jnp.float32) if name in want else None for name in LogprobOut._fields))
    blank = jax.tree.map(lambda leaf: jnp.zeros((rows, *leaf.shape[1:]), leaf.dtype), extra.aux)
    return call_loss(loss_fn, zeros, Extra(jnp.zeros(rows, bool), blank, extra.given))


def merge(left: Metrics, right: Metrics) -> Metrics:
    """Metrics of both."""
    return reduce_stacked(jax.tree.map(lambda a, b: jnp.stack([a, b]), left, right))
