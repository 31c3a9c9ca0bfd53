import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrlhf.models import mix_kernels
from jaxrlhf.models.mix_kernels import keep_of_kernels, mix_cudnn, mix_splash, mix_splash_over_mesh
from jaxrlhf.sharding.mesh import make_mesh
from tests.models.mixes import assert_near, inputs, positions_within, run, segments_of, whole


@pytest.mark.parametrize("tokens, options", [(128, {}), (130, {}), (130, {"window": 20, "scale": 0.2, "softcap": 3.0})])
def test_splash_equals_the_whole_square(tokens, options):
    segment_ids, parts = segments_of(tokens), inputs(tokens, 64)
    found = run(functools.partial(mix_splash, segment_ids, interpret=True, **options), segment_ids, parts)
    assert_near(found, run(whole(segment_ids, **options), segment_ids, parts))


@pytest.mark.parametrize("rows", [4, 3])
def test_splash_runs_on_each_devices_rows_and_heads(monkeypatch, rows):
    monkeypatch.setattr(mix_kernels, "mix_splash", functools.partial(mix_splash, interpret=True))
    segment_ids, parts = jnp.asarray(np.ones((rows, 128), np.int32)), inputs(128, 64, rows)
    with jax.set_mesh(make_mesh(2, 2, 2)):
        mixed = jax.jit(functools.partial(mix_splash_over_mesh, segment_ids))(*parts)
        np.testing.assert_allclose(mixed, whole(segment_ids)(*parts), rtol=1e-4, atol=1e-4)
        if rows == 4:
            assert mixed.addressable_shards[0].data.shape == (1, 128, 2, 64)


@pytest.mark.parametrize("options", [{}, {"window": 4, "scale": 0.2}], ids=["all", "window"])
@pytest.mark.parametrize("prefixes", [False, True])
@pytest.mark.parametrize("tokens", [16, 15])
def test_what_cudnn_is_asked_for_equals_the_whole_square(monkeypatch, tokens, prefixes, options):
    """Without the kernel: the mask, which it gets with `is_causal`, and a number of tokens that its gradient takes."""
    segment_ids, parts = jnp.asarray([[1] * 6 + [2] * 5 + [3] * (tokens - 12) + [0]]), inputs(tokens, 8, rows=1)
    prefix_ids = jnp.where(segment_ids > 1, 1, 0) if prefixes else None
    expected = run(whole(segment_ids, prefix_ids, **options), segment_ids, parts)

    def without_kernel(*parts, implementation, is_causal, **options):
        assert implementation == "cudnn" and is_causal and all(part.shape[1] == 16 for part in parts)
        return dot_product_attention(*parts, is_causal=True, **options)

    dot_product_attention = jax.nn.dot_product_attention
    monkeypatch.setattr(jax.nn, "dot_product_attention", without_kernel)
    places = positions_within(segment_ids, prefix_ids)
    found = functools.partial(mix_cudnn, segment_ids, prefix_ids, positions=places, **options)
    assert_near(run(found, segment_ids, parts), expected)


def test_the_kernel_of_cudnn_has_the_name_that_remat_keeps():
    from jax._src.cudnn.fused_attention_stablehlo import _dot_product_attention_fwd_p_wrapper as forward

    assert keep_of_kernels(forward)
    assert not keep_of_kernels(jax.lax.exp_p)
