import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrlhf.models.cache import attention_mask, make_cache, open_slots, read_layer, write_layer
from tests.models.tiny import TINY


def test_without_a_cache_tokens_see_earlier_ones_of_their_segment():
    mask = attention_mask(jnp.asarray([[0, 1, 1, 2, 2]]), None)
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
    mask = attention_mask(segments, None, prefixes)
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


def test_with_a_cache_tokens_see_the_slots_before_them():
    cache = dataclasses.replace(
        make_cache(TINY, 1, 5, jnp.float32), segment_ids=jnp.asarray([[0, 1, 0, 0, 0]]), index=jnp.asarray(2)
    )
    new = jnp.asarray([[1, 1]])
    mask = attention_mask(new, open_slots(cache, new))
    np.testing.assert_array_equal(mask[0, 0], np.asarray([[0, 1, 1, 0, 0], [0, 1, 1, 1, 0]], bool))


def test_more_tokens_than_slots_are_refused():
    with pytest.raises(ValueError, match="6 tokens do not fit into a cache of 5 slots"):
        open_slots(make_cache(TINY, 1, 5, jnp.float32), jnp.ones((1, 6), jnp.int32))


def test_a_layer_is_written_at_the_index_and_nowhere_else():
    cache = dataclasses.replace(make_cache(TINY, 2, 5, jnp.bfloat16), index=jnp.asarray(3))
    keys, values = jnp.ones((2, 1, 2, 8)), jnp.full((2, 1, 2, 8), 2.0)
    written = jax.jit(write_layer)(cache, 1, keys, values)
    read_keys, read_values = read_layer(written, 1)
    assert read_keys.dtype == jnp.bfloat16
    np.testing.assert_array_equal(read_keys[:, :, 0, 0].astype(jnp.float32), [[0, 0, 0, 1, 0]] * 2)
    np.testing.assert_array_equal(read_values[:, :, 0, 0].astype(jnp.float32), [[0, 0, 0, 2, 0]] * 2)
    assert float(jnp.sum(written.keys)) == 2 * 2 * 8
