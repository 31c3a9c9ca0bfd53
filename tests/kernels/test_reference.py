import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrlhf.kernels.inputs import Given, Side
from jaxrlhf.kernels.reference import logits_of, matmul_precision, reference_logprobs
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


def test_two_words_at_half_temperature():
    # Logits (ln 2, 0) / 0.5 = (ln 4, 0): probabilities 4/5 and 1/5.
    hidden, head = jnp.ones((1, 1)), Head(weight=jnp.asarray([[math.log(2.0)], [0.0]]))
    given = Given(jnp.asarray([1]), None, jnp.asarray(0.5))
    out = reference_logprobs((Side(hidden, head),), given, frozenset({"logp", "lse", "entropy", "max_logit"}), 1)
    np.testing.assert_allclose(out.logp, [math.log(0.2)], rtol=1e-6)
    np.testing.assert_allclose(out.lse, [math.log(5.0)], rtol=1e-6)
    np.testing.assert_allclose(out.entropy, [-0.8 * math.log(0.8) - 0.2 * math.log(0.2)], rtol=1e-6)
    np.testing.assert_allclose(out.max_logit, [math.log(4.0)], rtol=1e-6)
