"""Several passes over a rollout: which rows each update takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from jaxrlhf.ops.stats import reduce_stacked
from jaxrlhf.types import Metrics, Rollout, TokenBatch

S = TypeVar("S")
R = TypeVar("R", Rollout, TokenBatch)


def visit_rows(
    update: Callable[[S, R, Any], tuple[S, Metrics]],
    states: S,
    rollout: R,
    key: jax.Array,
    *,
    epochs: int,
    mini_batches: int,
    beside: Any = None,
) -> tuple[S, Metrics]:
    """Updates on all rows, `epochs` times, in `mini_batches` parts; a scan, hence one program however many there are.

    The first epoch takes rows in the order in which they were sampled, which is random already, later ones in an order
    drawn from the key.

    Args:
        update: `(states, part, own) -> (states, metrics)`.
        states: what updates change.
        rollout: [B, ...] arrays.
        key: consumed.
        epochs: passes over the rollout.
        mini_batches: updates in an epoch; divides B.
        beside: pytree of [epochs * mini_batches, ...] arrays; each update is given its own entry of them.

    Returns:
        The states after the last update, and the metrics of all updates merged.
    """

    def one(states: S, taken: tuple[jax.Array, Any]) -> tuple[S, Metrics]:
        rows, own = taken
        return update(states, jax.tree.map(lambda leaf: leaf[rows], rollout), own)

    order = row_order(key, rollout.mask.shape[0], epochs, mini_batches)
    states, metrics = jax.lax.scan(one, states, (order, beside))
    return states, reduce_stacked(metrics)


def row_order(key: jax.Array, rows: int, epochs: int, mini_batches: int) -> jax.Array:
    """[epochs * mini_batches, rows / mini_batches] row numbers."""
    shuffled = jax.vmap(lambda k: jax.random.permutation(k, rows))(jax.random.split(key, epochs))
    order = shuffled.at[0].set(jnp.arange(rows)).reshape(epochs, rows // mini_batches, mini_batches)
    # Update i takes rows i, i + mini_batches, ... of the order, as `split_rows` does: what was scored together is
    # updated together, and each device gives its share.
    return jnp.swapaxes(order, 1, 2).reshape(epochs * mini_batches, rows // mini_batches)
