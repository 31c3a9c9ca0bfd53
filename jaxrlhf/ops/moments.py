"""Mean and variance of all values seen so far, a batch at a time."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrlhf.ops.masked import masked_sum


class RunningMoments(NamedTuple):
    """What is known of all values so far; float32 scalars.

    Attributes:
        number: of values.
        mean: their mean, 0 while there are none.
        squares: sum of their squared distances from the mean.
    """

    number: jax.Array
    mean: jax.Array
    squares: jax.Array

    @property
    def std(self) -> jax.Array:
        """Their standard deviation (divided by n - 1); 0 of fewer than two."""
        return jnp.sqrt(self.squares / jnp.maximum(self.number - 1.0, 1.0))


def no_moments() -> RunningMoments:
    """Before the first value."""
    return RunningMoments(*jnp.zeros(3, jnp.float32))


def add_values(moments: RunningMoments, values: jax.Array, mask: jax.Array) -> RunningMoments:
    """Takes in the values where the mask is True (Chan, Golub and LeVeque 1983, eq. 2.1).

    Args:
        moments: of the values so far.
        values: [...] float array.
        mask: bool array of the same shape; a batch without a True changes nothing.
    """
    count = jnp.sum(mask, dtype=jnp.float32)
    # Counted from the largest one: the mean of equal values is then exactly theirs, and their deviation exactly 0.
    top = jnp.where(count > 0, jnp.max(jnp.where(mask, values, -jnp.inf), initial=-jnp.inf), 0.0)
    mean = top + masked_sum(values - top, mask) / jnp.maximum(count, 1.0)
    squares = masked_sum(jnp.square(values - mean), mask)
    total = moments.number + count
    share, distance = count / jnp.maximum(total, 1.0), mean - moments.mean
    return RunningMoments(
        number=total,
        mean=moments.mean + share * distance,
        squares=moments.squares + squares + share * moments.number * jnp.square(distance),
    )
