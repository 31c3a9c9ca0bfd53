import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrlhf.models.masks import segment_mask
from jaxrlhf.models.mix_xla import mix_blocked, mix_cached, mix_whole
from tests.models.mixes import assert_near, inputs, run, segments_of, whole


@pytest.mark.parametrize("tokens, options", [(37, {}), (64, {}), (768, {}), (64, {"scale": 0.2, "softcap": 3.0})])
def test_blocks_of_queries_equal_the_whole_square(tokens, options):
    segment_ids, parts = segments_of(tokens), inputs(tokens, 8)
    found = run(functools.partial(mix_blocked, segment_mask(segment_ids), **options), segment_ids, parts)
    assert_near(found, run(whole(segment_ids, **options), segment_ids, parts))


def test_scores_are_scaled_capped_and_then_masked():
    queries, keys = (jnp.asarray(x, jnp.float32)[None, :, None, None] for x in ([1.0, 2.0], [3.0, -1.0]))
    values = jnp.asarray([1.0, 0.0])[None, :, None, None]
    mixed = mix_whole(segment_mask(jnp.ones((1, 2), int)), queries, keys, values, scale=0.5, softcap=2.0)
    capped = 2 * np.tanh(np.asarray([2 * 3, -2 * 1]) * 0.5 / 2)
    np.testing.assert_allclose(mixed.ravel(), [1.0, 1 / (1 + np.exp(capped[1] - capped[0]))], rtol=1e-6)


def test_blocks_of_queries_sum_in_float32():
    segment_ids, parts = segments_of(64), inputs(64, 8)
    mask = segment_mask(segment_ids)
    mix = jax.jit(functools.partial(mix_blocked, mask))
    low = mix(*(part.astype(jnp.bfloat16) for part in parts))
    assert low.dtype == jnp.bfloat16
    gap = np.abs(low.astype(jnp.float32) - mix(*parts))[segment_ids != 0]
    assert gap.max() < 0.15 and gap.mean() < 0.01


@pytest.mark.parametrize("tokens, heads, kv_heads", [(1, 4, 2), (3, 4, 4), (5, 6, 1)])
def test_attention_to_a_cache_equals_attention_to_its_tokens(tokens: int, heads: int, kv_heads: int):
    rng = np.random.default_rng(0)
    queries, keys, values = (
        jnp.asarray(rng.normal(size=(2, length, count, 8)), jnp.float32)
        for length, count in ((tokens, heads), (7, kv_heads), (7, kv_heads))
    )
    mask = jnp.asarray(rng.random((2, 1, tokens, 7)) < 0.7).at[..., 0].set(True)
    options = {"scale": 0.2, "softcap": 3.0} if tokens == 3 else {}
    expected = mix_whole(mask, queries, keys, values, **options)
    found = mix_cached(mask, queries, *(jnp.swapaxes(part, 1, 2) for part in (keys, values)), **options)
    np.testing.assert_allclose(found, expected, atol=1e-6)
