import dataclasses

import jax.numpy as jnp
import numpy as np

from jaxrlhf.models.cache import make_cache
from jaxrlhf.models.masks import seen_columns, segment_mask
from tests.models.tiny import TINY


def test_tokens_see_earlier_ones_of_their_segment():
    mask = segment_mask(jnp.asarray([[0, 1, 1, 2, 2]]))
    expected = [
        [0, 0, 0, 0, 0],
        [0, 1, 0, 0, 0],
        [0, 1, 1, 0, 0],
        [0, 0, 0, 1, 0],
        [0, 0, 0, 1, 1],
    ]
    np.testing.assert_array_equal(mask[0, 0], np.asarray(expected, bool))


def test_a_segment_that_continues_another_sees_both_and_no_third():
    segments, prefixes = jnp.asarray([[0, 1, 1, 2, 2, 3, 0]]), jnp.asarray([[0, 0, 0, 1, 1, 1, 0]])
    mask = segment_mask(segments, prefixes)
    expected = [
        [0, 0, 0, 0, 0, 0, 0],
        [0, 1, 0, 0, 0, 0, 0],
        [0, 1, 1, 0, 0, 0, 0],
        [0, 1, 1, 1, 0, 0, 0],
        [0, 1, 1, 1, 1, 0, 0],
        [0, 1, 1, 0, 0, 1, 0],
        [0, 0, 0, 0, 0, 0, 0],
    ]
    np.testing.assert_array_equal(mask[0, 0], np.asarray(expected, bool))


def test_tokens_see_the_columns_of_their_row_up_to_their_own():
    cache = make_cache(TINY, 3, 5, jnp.float32, stacked=True)
    cache = dataclasses.replace(cache, index=jnp.asarray(2), start=jnp.asarray([1, 0, 3]))
    mask = seen_columns(cache, 2)
    expected = [
        [[0, 1, 1, 0, 0], [0, 1, 1, 1, 0]],
        [[1, 1, 1, 0, 0], [1, 1, 1, 1, 0]],
        [[0, 0, 0, 0, 0], [0, 0, 0, 1, 0]],  # its first token is the second of these
    ]
    np.testing.assert_array_equal(mask[:, 0], np.asarray(expected, bool))
    expected[0] = expected[1] = [[0, 1, 1, 0, 0], [0, 0, 1, 1, 0]]
    np.testing.assert_array_equal(seen_columns(cache, 2, window=2)[:, 0], np.asarray(expected, bool))


def test_a_window_is_counted_in_positions():
    segments, positions = jnp.asarray([[1, 1, 1, 2, 3, 3]]), jnp.asarray([[0, 1, 2, 3, 3, 4]])
    mask = segment_mask(segments, jnp.asarray([[0, 0, 0, 1, 1, 1]]), positions=positions, window=2)
    expected = [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [0, 1, 1, 0, 0, 0],
        [0, 0, 1, 1, 0, 0],
        [0, 0, 1, 0, 1, 0],  # the last of the prefix is one position before it
        [0, 0, 0, 0, 1, 1],
    ]
    np.testing.assert_array_equal(mask[0, 0], np.asarray(expected, bool))
