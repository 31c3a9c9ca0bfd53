"""Which of several answers to a prompt to learn from."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp


def best_of_group(scores: jax.Array, valid: jax.Array, keep: int) -> tuple[jax.Array, jax.Array]:
    """The answers of each group with the highest scores (rejection sampling; Dong et al. 2023, RAFT, algorithm 1).

    Args:
        scores: [P, K] float array, of the K answers to each prompt.
        valid: [P, K] bool array, True at answers that may be taken.
        keep: number of answers to take of each group, from 1 to K.

    Returns:
        [P, keep] int32, their numbers, the best first and of equal ones the first; and [P, keep] bool, False where a
        group has no valid answer left to take, and the number means nothing.

    Raises:
        ValueError: if `keep` is below 1 or above K.
    """
    chex.assert_rank([scores, valid], 2)
    chex.assert_equal_shape([scores, valid])
    if not 1 <= keep <= scores.shape[1]:
        raise ValueError(f"keep={keep} must lie in 1 ... {scores.shape[1]}, the answers of a group")
    order = jnp.lexsort((-scores, ~valid), axis=1)[:, :keep].astype(jnp.int32)
    return order, jnp.take_along_axis(valid, order, axis=1)
