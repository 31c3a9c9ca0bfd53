import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrlhf import ops
from jaxrlhf.ops.logprobs import kl_terms


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


class KLTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True, with_pmap=True)
    def test_kl_of_two_words(self):
        # Policy (1/2, 1/2), reference (1/4, 3/4): 1/2 ln 2 + 1/2 ln(2/3). Swapped: 1/4 ln(1/2) + 3/4 ln(3/2).
        logits = jnp.log(jnp.asarray([[1.0, 1.0], [1.0, 3.0]]))
        kl = self.variant(ops.kl_from_logits)(logits, logits[::-1])
        expected = [0.5 * math.log(2) + 0.5 * math.log(2 / 3), 0.25 * math.log(0.5) + 0.75 * math.log(1.5)]
        np.testing.assert_allclose(kl, expected, rtol=1e-6)


@pytest.mark.parametrize("scale", [1e-4, 1e-2, 1.0, 20.0])
@pytest.mark.parametrize("offset", [0.0, 1024.0])
def test_kl_matches_float64_near_and_far(scale: float, offset: float):
    rng = np.random.default_rng(0)
    logits = np.round(rng.normal(size=(4, 500)) * 2**10) / 2**10  # 1024 can be added without rounding
    ref_logits = logits + np.round(scale * rng.normal(size=logits.shape) * 2**13) / 2**13
    logprobs, ref_logprobs = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in (logits, ref_logits))
    expected = (np.exp(logprobs) * (logprobs - ref_logprobs)).sum(-1)
    kl = jax.jit(ops.kl_from_logits)(jnp.asarray(logits + offset, jnp.float32), jnp.asarray(ref_logits, jnp.float32))
    # The rounding of logits themselves, 1e-7 each, shows where the models differ by not much more.
    np.testing.assert_allclose(kl, expected, rtol=2e-6, atol=2e-7 * scale)


def test_kl_terms_are_never_negative_and_vanish_where_the_models_agree():
    rng = np.random.default_rng(0)
    logprobs = jax.nn.log_softmax(jnp.asarray(3 * rng.normal(size=(50, 1000)), jnp.float32))
    for scale in (0.0, 1e-6, 1e-3, 1.0, 100.0):
        noise = jnp.asarray(scale * rng.normal(size=logprobs.shape), jnp.float32)
        terms = kl_terms(logprobs, jax.nn.log_softmax(logprobs + noise))
        assert jnp.all(terms >= -1e-9)
    assert not jnp.any(kl_terms(logprobs, logprobs))


def test_words_that_are_ruled_out():
    run = jax.jit(jax.value_and_grad(ops.kl_from_logits))
    logits, ref_logits = jnp.asarray([0.0, 1.0, -jnp.inf]), jnp.asarray([1.0, 0.0, -jnp.inf])
    chex.assert_trees_all_close(
        run(logits, ref_logits),
        jax.tree.map(lambda x: jnp.append(x, 0.0) if x.ndim else x, run(logits[:2], ref_logits[:2])),
    )
    # The reference has half of its mass on a word that the policy lacks: ln 2.
    value, gradient = run(jnp.asarray([0.0, -jnp.inf]), jnp.zeros(2))
    np.testing.assert_allclose(value, math.log(2), rtol=1e-6)
    np.testing.assert_array_equal(gradient, [0.0, 0.0])
    assert ops.kl_from_logits(jnp.zeros(2), jnp.asarray([0.0, -jnp.inf])) == jnp.inf


def test_gradient_of_kl():
    # dKL/dz = p (log p - log q - KL), with p = (1/2, 1/2) and q = (1/4, 3/4): 1/4 ln 3, which falls on one word and not
    # on the other.
    logits, ref_logits = jnp.zeros(2), jnp.log(jnp.asarray([1.0, 3.0]))
    gradient = jax.jit(jax.grad(ops.kl_from_logits))
    np.testing.assert_allclose(gradient(logits, ref_logits), [math.log(3) / 4, -math.log(3) / 4], rtol=1e-6)
    np.testing.assert_array_equal(gradient(ref_logits, ref_logits), [0.0, 0.0])


def test_what_is_no_word_has_no_probability():
    logp = ops.logprobs_from_logits(jnp.zeros((4, 5)), jnp.asarray([-100, -1, 4, 5]))
    np.testing.assert_allclose(logp, [-jnp.inf, -jnp.inf, -jnp.log(5), -jnp.inf], rtol=1e-6)
