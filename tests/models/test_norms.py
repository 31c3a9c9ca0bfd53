import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jaxrlhf.models.norms import LayerNorm, RMSNorm, make_norm
from tests.models.tiny import TINY


def test_rms_norm_of_worked_numbers():
    params = {"scale": jnp.asarray([1.0, 2.0])}
    normed = RMSNorm(0.5, 0.0, jnp.float32).apply({"params": params}, jnp.asarray([[[3.0, 4.0]]]))
    np.testing.assert_allclose(normed.ravel(), [3 / np.sqrt(13), 8 / np.sqrt(13)], rtol=1e-6)  # 12.5 + 0.5


def test_an_offset_is_added_to_scales():
    params = {"scale": jnp.asarray([0.0, 1.0])}
    normed = RMSNorm(0.5, 1.0, jnp.float32).apply({"params": params}, jnp.asarray([[[3.0, 4.0]]]))
    np.testing.assert_allclose(normed.ravel(), [3 / np.sqrt(13), 8 / np.sqrt(13)], rtol=1e-6)


def test_rms_norm_sums_in_float32():
    x = jnp.full((1, 1, 4096), 0.1, jnp.bfloat16)  # a bfloat16 sum of squares would stall long before 4096 terms
    normed = RMSNorm(1e-6, 0.0, jnp.bfloat16).apply({"params": {"scale": jnp.ones(4096)}}, x)
    assert normed.dtype == jnp.bfloat16
    np.testing.assert_array_equal(normed.astype(jnp.float32), 1.0)


def test_layer_norm_of_worked_numbers():
    params = {"scale": jnp.asarray([1.0, 2.0]), "bias": jnp.asarray([0.5, -1.0])}
    normed = LayerNorm(3.0, 0.0, jnp.float32).apply({"params": params}, jnp.asarray([[[3.0, 5.0]]]))
    np.testing.assert_allclose(normed.ravel(), [-0.5 + 0.5, 2 * 0.5 - 1.0], atol=1e-6)  # the variance is 1


def test_fresh_norms_leave_what_is_normalised():
    x = jnp.asarray([[[1.0, -1.0]]])
    for changes in ({}, {"norm_offset": 1.0}, {"norm": "layer"}):
        norm = make_norm(dataclasses.replace(TINY, norm_eps=1e-9, **changes), jnp.float32)
        np.testing.assert_allclose(norm.apply(norm.init(jax.random.key(0), x), x), x, rtol=1e-5)
