import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrlhf import losses

SCORES = jnp.asarray([[1.0, 3.0, 2.0, 3.0], [-1.0, -5.0, -2.0, 9.0], [0.5, 0.5, 0.5, 0.5], [7.0, math.nan, 1.0, 8.0]])
VALID = jnp.asarray([[True] * 4, [True, True, False, False], [True] * 4, [False] * 4])


class SelectionTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_worked_example(self):
        chosen, kept = self.variant(losses.best_of_group, static_argnums=2)(SCORES, VALID, 3)
        np.testing.assert_array_equal(kept, [[True] * 3, [True, True, False], [True] * 3, [False] * 3])
        np.testing.assert_array_equal(chosen[0], [1, 3, 2])
        np.testing.assert_array_equal(chosen[1, :2], [0, 1])
        np.testing.assert_array_equal(chosen[2], [0, 1, 2])
        assert chosen.dtype == jnp.int32


@pytest.mark.parametrize("keep", [1, 2, 4])
def test_all_that_is_left_scores_no_more_than_what_is_taken(keep):
    scores = jnp.round(2 * jax.random.normal(jax.random.key(0), (50, 4)))  # with many ties
    valid = jax.random.bernoulli(jax.random.key(1), 0.7, (50, 4))
    chosen, kept = (np.asarray(array) for array in losses.best_of_group(scores, valid, keep))
    for row in range(50):
        own = chosen[row][kept[row]]
        allowed = np.flatnonzero(valid[row])
        assert len(own) == min(keep, len(allowed)) and set(own) <= set(allowed)
        ordered = sorted(allowed, key=lambda number: (-scores[row, number], number))
        assert own.tolist() == ordered[: len(own)]


def test_groups_must_be_matrices_of_one_shape():
    with pytest.raises(AssertionError):
        losses.best_of_group(SCORES, VALID[:, :2], 1)


@pytest.mark.parametrize("keep", [0, 4])
def test_more_than_there_are_cannot_be_taken(keep):
    with pytest.raises(ValueError, match=rf"keep={keep} must lie in 1 \.\.\. 3"):
        losses.best_of_group(jnp.zeros((2, 3)), jnp.ones((2, 3), bool), keep)
