"""Several passes over a rollout: which rows each update takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp

from jaxrlhf.ops.stats import reduce_stacked
from jaxrlhf.types import Metrics, Rollout

S = TypeVar("S")


def visit_rows(
    update: Callable[[S, Rollout], tuple[S, Metrics]],
    states: S,
    rollout: Rollout,
    key: jax.Array,
    *,
    epochs: int,
    mini_batches: int,
) -> tuple[S, Metrics]:
    """Updates on all rows, `epochs` times, in `mini_batches` parts; a scan, hence one program however many there are.

    The first epoch takes rows in the order in which they were sampled, which is random already, later ones in an order
    drawn from the key.

    Args:
        update: `(states, part) -> (states, metrics)`.
        states: what updates change.
        rollout: [B, ...] arrays.
        key: consumed.
        epochs: passes over the rollout.
        mini_batches: updates in an epoch; divides B.

    Returns:
        The states after the last update, and the metrics of all updates merged.
    """

    def one(states: S, rows: jax.Array) -> tuple[S, Metrics]:
        return update(states, jax.tree.map(lambda leaf: leaf[rows], rollout))

    states, metrics = jax.lax.scan(one, states, row_order(key, rollout.mask.shape[0], epochs, mini_batches))
    return states, reduce_stacked(metrics)


def row_order(key: jax.Array, rows: int, epochs: int, mini_batches: int) -> jax.Array:
    """[epochs * mini_batches, rows / mini_batches] row numbers."""
    shuffled = jax.vmap(lambda k: jax.random.permutation(k, rows))(jax.random.split(key, epochs))
    order = shuffled.at[0].set(jnp.arange(rows)).reshape(epochs, rows // mini_batches, mini_batches)
    # Update i takes rows i, i + mini_batches, ... of the order, as `split_rows` does: what was scored together is
    # updated together, and each device gives its share.
    return jnp.swapaxes(order, 1, 2).reshape(epochs * mini_batches, rows // mini_batches)
