import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrlhf import ops


class LogprobsTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True, with_pmap=True)
    def test_log_probability_of_each_target(self):
        # Row 1: exp = (1, 2, 5), sum 8. Row 2: exp = (1, 1, 2), sum 4.
        logits = jnp.log(jnp.asarray([[1.0, 2.0, 5.0], [1.0, 1.0, 2.0]]))
        logprobs = self.variant(ops.logprobs_from_logits)(logits, jnp.asarray([1, 2]))
        np.testing.assert_allclose(logprobs, [math.log(2 / 8), math.log(2 / 4)], rtol=1e-6)

    @chex.variants(with_jit=True, without_jit=True, with_pmap=True)
    def test_entropy(self):
        # Probabilities (1/4, 1/4, 1/2): entropy 2 * 1/4 * ln 4 + 1/2 * ln 2 = 1.5 ln 2.
        entropy = self.variant(ops.entropy_from_logits)(jnp.log(jnp.asarray([[1.0, 1.0, 2.0]])))
        np.testing.assert_allclose(entropy, [1.5 * math.log(2.0)], rtol=1e-6)


def test_leading_axes_are_kept_and_bfloat16_is_read_as_float32():
    logits = jnp.zeros((2, 3, 8), jnp.bfloat16)
    logprobs = ops.logprobs_from_logits(logits, jnp.zeros((2, 3), int))
    chex.assert_shape([logprobs, ops.entropy_from_logits(logits)], (2, 3))
    chex.assert_type([logprobs, ops.entropy_from_logits(logits)], jnp.float32)
    np.testing.assert_allclose(logprobs, np.full((2, 3), -math.log(8.0)), rtol=1e-6)


def test_classes_of_probability_zero_add_nothing_to_value_or_gradient():
    logits = jnp.asarray([0.0, -jnp.inf, 1.0, -jnp.inf])
    kept = jnp.asarray([0.0, 1.0])
    run = jax.jit(jax.value_and_grad(ops.entropy_from_logits))
    (entropy, gradient), (kept_entropy, kept_gradient) = run(logits), run(kept)
    np.testing.assert_allclose(entropy, kept_entropy, rtol=1e-6)
    np.testing.assert_allclose(gradient, [kept_gradient[0], 0.0, kept_gradient[1], 0.0], rtol=1e-5)


def test_large_logits_do_not_overflow():
    logits = jnp.asarray([[1e4, 0.0], [-1e4, -1e4]])
    np.testing.assert_allclose(ops.logprobs_from_logits(logits, jnp.asarray([1, 0])), [-1e4, -math.log(2.0)], rtol=1e-6)
    np.testing.assert_allclose(ops.entropy_from_logits(logits), [0.0, math.log(2.0)], rtol=1e-6)


def test_targets_of_another_shape_are_an_error():
    with pytest.raises(AssertionError):
        ops.logprobs_from_logits(jnp.zeros((2, 3)), jnp.zeros(3, int))
