import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrlhf.models import attention_backends
from jaxrlhf.models.attention_backends import (
    keep_of_kernels,
    mix_blocked,
    mix_cached,
    mix_cudnn,
    mix_splash,
    mix_splash_over_mesh,
    mix_whole,
    segment_mask,
)
from jaxrlhf.sharding.mesh import make_mesh


def segments_of(tokens):
    """Packed sequences before padding, one after padding, and nothing but padding."""
    third = tokens // 3
    rows = np.zeros((3, tokens), np.int32)
    rows[0, :third], rows[0, third : tokens - 5] = 1, 2
    rows[1, third:] = 1
    return jnp.asarray(rows)


def inputs(tokens, width, rows=3):
    shapes = [(rows, tokens, 4, width), (rows, tokens, 2, width), (rows, tokens, 2, width)]
    keys = jax.random.split(jax.random.key(0), 3)
    return [2 * jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]


def run(mix, segment_ids, parts):
    """Mixed values where a token is read, and the gradients of a sum of their squares."""

    def read(*parts):
        mixed = mix(*parts)
        return jnp.where((segment_ids != 0)[:, :, None, None], mixed, 0.0), mixed

    def loss(*parts):
        kept, mixed = read(*parts)
        return jnp.sum(jnp.square(kept)), (kept, mixed)

    (_, (kept, mixed)), grads = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(*parts)
    assert jnp.isfinite(mixed).all() and all(jnp.isfinite(grad).all() for grad in grads)
    return [kept, *grads]


def assert_near(found, expected):
    """Both are `run`'s; rounding is that of the largest numbers."""
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * float(jnp.abs(b).max()))


def whole(segment_ids, prefix_ids=None):
    return functools.partial(mix_whole, segment_mask(segment_ids, prefix_ids))


@pytest.mark.parametrize("tokens", [37, 64, 768])
def test_blocks_of_queries_equal_the_whole_square(tokens):
    segment_ids, parts = segments_of(tokens), inputs(tokens, 8)
    found = run(functools.partial(mix_blocked, segment_mask(segment_ids)), segment_ids, parts)
    assert_near(found, run(whole(segment_ids), segment_ids, parts))


def test_blocks_of_queries_sum_in_float32():
    segment_ids, parts = segments_of(64), inputs(64, 8)
    mask = segment_mask(segment_ids)
    mix = jax.jit(functools.partial(mix_blocked, mask))
    low = mix(*(part.astype(jnp.bfloat16) for part in parts))
    assert low.dtype == jnp.bfloat16
    gap = np.abs(low.astype(jnp.float32) - mix(*parts))[segment_ids != 0]
    assert gap.max() < 0.15 and gap.mean() < 0.01


@pytest.mark.parametrize("tokens", [128, 130])
def test_splash_equals_the_whole_square(tokens):
    segment_ids, parts = segments_of(tokens), inputs(tokens, 64)
    found = run(functools.partial(mix_splash, segment_ids, interpret=True), segment_ids, parts)
    assert_near(found, run(whole(segment_ids), segment_ids, parts))


@pytest.mark.parametrize("rows", [4, 3])
def test_splash_runs_on_each_devices_rows_and_heads(monkeypatch, rows):
    monkeypatch.setattr(attention_backends, "mix_splash", functools.partial(mix_splash, interpret=True))
    segment_ids, parts = jnp.asarray(np.ones((rows, 128), np.int32)), inputs(128, 64, rows)
    with jax.set_mesh(make_mesh(2, 2, 2)):
        mixed = jax.jit(functools.partial(mix_splash_over_mesh, segment_ids))(*parts)
        np.testing.assert_allclose(mixed, whole(segment_ids)(*parts), rtol=1e-4, atol=1e-4)
        if rows == 4:
            assert mixed.addressable_shards[0].data.shape == (1, 128, 2, 64)


@pytest.mark.parametrize("prefixes", [False, True])
@pytest.mark.parametrize("tokens", [16, 15])
def test_what_cudnn_is_asked_for_equals_the_whole_square(monkeypatch, tokens, prefixes):
    """Without the kernel: the mask, which it gets with `is_causal`, and a number of tokens that its gradient takes."""
    segment_ids, parts = jnp.asarray([[1] * 6 + [2] * 5 + [3] * (tokens - 12) + [0]]), inputs(tokens, 8, rows=1)
    prefix_ids = jnp.where(segment_ids > 1, 1, 0) if prefixes else None
    expected = run(whole(segment_ids, prefix_ids), segment_ids, parts)

    def without_kernel(*parts, implementation, is_causal, **options):
        assert implementation == "cudnn" and is_causal and all(part.shape[1] == 16 for part in parts)
        return dot_product_attention(*parts, is_causal=True, **options)

    dot_product_attention = jax.nn.dot_product_attention
    monkeypatch.setattr(jax.nn, "dot_product_attention", without_kernel)
    assert_near(run(functools.partial(mix_cudnn, segment_ids, prefix_ids), segment_ids, parts), expected)


def test_the_kernel_of_cudnn_has_the_name_that_remat_keeps():
    from jax._src.cudnn.fused_attention_stablehlo import _dot_product_attention_fwd_p_wrapper as forward

    assert keep_of_kernels(forward)
    assert not keep_of_kernels(jax.lax.exp_p)


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


@pytest.mark.parametrize("tokens, heads, kv_heads", [(1, 4, 2), (3, 4, 4), (5, 6, 1)])
def test_attention_to_a_cache_equals_attention_to_its_tokens(tokens: int, heads: int, kv_heads: int):
    rng = np.random.default_rng(0)
    queries, keys, values = (
        jnp.asarray(rng.normal(size=(2, length, count, 8)), jnp.float32)
        for length, count in ((tokens, heads), (7, kv_heads), (7, kv_heads))
    )
    mask = jnp.asarray(rng.random((2, 1, tokens, 7)) < 0.7).at[..., 0].set(True)
    expected = mix_whole(mask, queries, keys, values)
    found = mix_cached(mask, queries, *(jnp.swapaxes(part, 1, 2) for part in (keys, values)))
    np.testing.assert_allclose(found, expected, atol=1e-6)
