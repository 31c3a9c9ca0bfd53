import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrlhf.kernels.logits import (
    before_softcap,
    by_hidden,
    by_weight,
    logits_of,
    matmul_precision,
    tile_logits,
    tile_weight,
)
from jaxrlhf.types import Head


def test_logits_scale_then_bias_then_softcap_then_padding():
    head = Head(
        weight=jnp.asarray([[1.0, 2.0], [0.0, -1.0], [5.0, 5.0]]),
        bias=jnp.asarray([0.5, -0.5, 9.0]),
        softcap=2.0,
        scale=0.5,
        vocab_size=2,
    )
    # Row (1, 2): 0.5 * (1 + 4) + 0.5 = 3 and 0.5 * -2 - 0.5 = -1.5, then 2 tanh(3 / 2) and 2 tanh(-1.5 / 2).
    logits = logits_of(jnp.asarray([[1.0, 2.0]]), head)
    np.testing.assert_allclose(logits, [[2 * math.tanh(1.5), -2 * math.tanh(0.75), -np.inf]], rtol=1e-6)


def test_logits_take_any_leading_axes():
    head = Head(weight=jnp.ones((3, 2)), bias=jnp.asarray([0.0, 1.0, 2.0]), vocab_size=2)
    logits = logits_of(jnp.ones((4, 5, 2)), head)
    assert logits.shape == (4, 5, 3)
    np.testing.assert_array_equal(logits[3, 4], [2.0, 3.0, -np.inf])


def test_bfloat16_products_are_summed_in_float32():
    # 256 + 1 is 256 in bfloat16, so 1 a step would never arrive.
    hidden, weight = jnp.ones((1, 65), jnp.bfloat16), jnp.ones((1, 65), jnp.bfloat16).at[0, 0].set(256.0)
    logits = logits_of(hidden, Head(weight=weight))
    assert logits.dtype == jnp.float32
    assert logits[0, 0] == 320.0


@pytest.mark.parametrize(("dtype", "precision"), [("float32", jax.lax.Precision.HIGHEST), ("bfloat16", None)])
def test_only_float32_asks_for_full_precision(dtype: str, precision: jax.lax.Precision | None):
    assert matmul_precision(jnp.ones(1, dtype)) == precision


@pytest.mark.parametrize("layout", ["vd", "dv"])
def test_logits_of_tiles_are_the_logits(layout: str):
    rng = np.random.default_rng(0)
    hidden, weight = (jnp.asarray(rng.normal(size=(n, 3)), jnp.float32) for n in (2, 10))
    weight = weight if layout == "vd" else weight.T
    head = Head(
        weight=weight, bias=jnp.asarray(rng.normal(size=10), jnp.float32), softcap=2.0, scale=0.5, layout=layout
    )
    for first in (0, 4, 6):
        part = tile_weight(head, jnp.asarray(first), 4, hidden.dtype)
        z = tile_logits(hidden, head, part, jnp.asarray(1 / 0.5), jnp.asarray(first), 4)
        np.testing.assert_allclose(z, logits_of(hidden, head)[:, first : first + 4] / 0.5, rtol=1e-6)


@pytest.mark.parametrize("layout", ["vd", "dv"])
def test_the_gradient_goes_back_the_way_that_logits_came(layout: str):
    rng = np.random.default_rng(1)
    hidden, weight, dz = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((2, 3), (4, 3), (2, 4)))
    weight = weight if layout == "vd" else weight.T

    def forward(hidden: jax.Array, weight: jax.Array) -> jax.Array:
        head = Head(weight=weight, softcap=2.0, scale=0.5, layout=layout)
        return tile_logits(hidden, head, weight, jnp.asarray(1 / 0.5), jnp.asarray(0), 4)

    z, pull = jax.vjp(forward, hidden, weight)
    head = Head(weight=weight, softcap=2.0, scale=0.5, layout=layout)
    fresh = jnp.asarray([[True, True, True, False]])
    draw = before_softcap(dz, z, head, jnp.asarray(1 / 0.5), fresh)
    by = by_hidden(draw, weight, head), by_weight(draw, hidden, head)
    for found, expected in zip(by, pull(jnp.where(fresh, dz, 0.0)), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
