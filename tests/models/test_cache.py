import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrlhf.models.cache import make_cache, read_layer, write_layer
from tests.models.tiny import TINY


def cache_of(columns: int, index: int, start: list[int], *, stacked: bool = True, dtype=jnp.float32):
    cache = make_cache(TINY, len(start), columns, dtype, stacked=stacked)
    return dataclasses.replace(cache, index=jnp.asarray(index), start=jnp.asarray(start))


@pytest.mark.parametrize("stacked", [True, False])
def test_more_tokens_than_columns_are_refused(stacked: bool):
    parts = jnp.ones((1, 6, 2, 8))
    with pytest.raises(ValueError, match="6 tokens do not fit into a cache of 5 columns"):
        write_layer(cache_of(5, 0, [0], stacked=stacked), 0, parts, parts)


@pytest.mark.parametrize("stacked", [True, False])
def test_a_layer_is_written_at_the_index_and_nowhere_else(stacked: bool):
    cache = cache_of(5, 3, [0, 0], stacked=stacked, dtype=jnp.bfloat16)
    keys = jnp.arange(1.0, 3.0)[None, None, :, None] * jnp.ones((2, 1, 2, 8))  # heads 1 and 2
    written = jax.jit(write_layer, static_argnums=1)(cache, 1, keys, 10.0 * keys)
    for found, factor in zip(read_layer(written, 1), (1.0, 10.0), strict=True):
        assert found.dtype == jnp.bfloat16 and found.shape == (2, 2, 5, 8)
        expected = factor * np.asarray([[0, 0, 0, 1, 0], [0, 0, 0, 2, 0]])
        np.testing.assert_array_equal(found[:, :, :, 0].astype(jnp.float32), np.stack([expected] * 2))
    for other in (0, 2):
        assert not any(part.any() for part in read_layer(written, other))


@pytest.mark.parametrize("stacked", [True, False])
def test_the_layout_that_tpus_are_told_changes_no_number(stacked: bool, monkeypatch):
    cache = cache_of(5, 3, [0, 0], stacked=stacked)
    keys, values = (jnp.asarray(np.random.default_rng(seed).normal(size=(2, 1, 2, 8)), jnp.float32) for seed in (0, 1))
    expected = write_layer(cache, 1, keys, values)
    monkeypatch.setattr("jaxrlhf.models.cache.target_platform", lambda: "tpu")
    lowered = jax.jit(write_layer, static_argnums=1).lower(cache, 1, keys, values)
    assert lowered.as_text().count("LayoutConstraint") == 2
    chex.assert_trees_all_equal(lowered.compile()(cache, keys, values), expected)
