import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrlhf import ops
from jaxrlhf.ops.masked import positions_of

VALUES = jnp.asarray([[1.0, 2.0, jnp.nan], [6.0, jnp.inf, -jnp.inf]])
MASK = jnp.asarray([[True, True, False], [True, False, False]])


class MaskedTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True, with_pmap=True)
    def test_sum_and_mean_read_the_true_entries(self):
        assert self.variant(ops.masked_sum)(VALUES, MASK) == 9.0
        assert self.variant(ops.masked_mean)(VALUES, MASK) == 3.0
        assert self.variant(ops.masked_mean)(VALUES, MASK, 6.0) == 1.5

    @chex.variants(with_jit=True, without_jit=True, with_pmap=True)
    def test_whiten(self):
        # Values 1, 2, 6: mean 3, deviations -2, -1, 3, unbiased variance (4 + 1 + 9) / 2 = 7.
        expected = np.asarray([[-2.0, -1.0, 0.0], [3.0, 0.0, 0.0]]) / np.sqrt(7.0)
        np.testing.assert_allclose(self.variant(ops.whiten)(VALUES, MASK), expected, rtol=1e-6)

    @chex.variants(with_jit=True, without_jit=True, with_pmap=True)
    def test_whiten_keep_mean(self):
        expected = np.asarray([[3 - 2 / 7**0.5, 3 - 1 / 7**0.5, 0.0], [3 + 3 / 7**0.5, 0.0, 0.0]])
        np.testing.assert_allclose(self.variant(ops.whiten_keep_mean)(VALUES, MASK), expected, rtol=1e-6)


def test_sum_along_an_axis():
    np.testing.assert_array_equal(ops.masked_sum(VALUES, MASK, axis=1), [3.0, 6.0])
    np.testing.assert_array_equal(ops.masked_sum(VALUES, MASK, axis=0), [7.0, 2.0, 0.0])


def test_sums_are_float32():
    # In bfloat16 the sum of 1000 ones stops at 256.
    ones = jnp.ones(1000, jnp.bfloat16)
    total = ops.masked_sum(ones, jnp.ones(1000, bool))
    assert total.dtype == jnp.float32
    assert total == 1000.0


def test_nothing_to_count_gives_zero():
    nothing = jnp.zeros_like(MASK)
    assert ops.masked_count(nothing) == 1.0
    assert ops.masked_mean(VALUES, nothing) == 0.0
    assert not jnp.any(ops.whiten(VALUES, nothing))
    assert not jnp.any(ops.whiten_keep_mean(VALUES, nothing))


def test_count_is_of_true_entries_unless_given():
    assert ops.masked_count(MASK) == 3.0
    assert ops.masked_count(MASK, 12) == 12.0
    assert ops.masked_count(MASK, 0) == 1.0


@pytest.mark.parametrize("mask", [jnp.ones((2, 1), bool), jnp.ones((2, 3))], ids=["shape", "float"])
def test_mask_must_be_bool_and_of_the_same_shape(mask: jax.Array):
    with pytest.raises(AssertionError):
        ops.masked_sum(VALUES, mask)


def test_whitened_values_have_mean_0_and_unbiased_variance_1():
    rng = np.random.default_rng(0)
    values, mask = jnp.asarray(rng.normal(5.0, 3.0, size=(8, 16)), jnp.float32), jnp.asarray(rng.random((8, 16)) < 0.6)
    kept = np.asarray(ops.whiten(values, mask))[mask]
    np.testing.assert_allclose([kept.mean(), kept.var(ddof=1)], [0.0, 1.0], atol=1e-5)
    kept = np.asarray(ops.whiten_keep_mean(values, mask))[mask]
    np.testing.assert_allclose([kept.mean(), kept.var(ddof=1)], [np.asarray(values)[mask].mean(), 1.0], atol=1e-5)


@pytest.mark.parametrize("whiten", [ops.whiten, ops.whiten_keep_mean])
def test_equal_values_have_no_spread_to_divide_by(whiten):
    mean = 0.0 if whiten is ops.whiten else 4.0
    np.testing.assert_array_equal(whiten(jnp.full((1, 5), 4.0), jnp.ones((1, 5), bool)), np.full((1, 5), mean))


def test_one_value_whitens_to_zero():
    np.testing.assert_array_equal(ops.whiten(jnp.asarray([7.0, 9.0]), jnp.asarray([True, False])), [0.0, 0.0])


@pytest.mark.parametrize("reduce", [ops.masked_mean, ops.whiten, ops.whiten_keep_mean])
def test_padding_has_no_say_in_value_or_gradient(reduce):
    run = jax.jit(jax.value_and_grad(lambda values, mask: jnp.sum(jnp.sin(reduce(values, mask)))))
    value, gradient = run(VALUES, MASK)
    kept_value, kept_gradient = run(VALUES[MASK], MASK[MASK])
    np.testing.assert_allclose(value, kept_value, rtol=1e-6)
    np.testing.assert_allclose(gradient[MASK], kept_gradient, rtol=1e-5)
    assert not jnp.any(gradient[~MASK])


def test_positions_count_from_the_first_token():
    segments = jnp.asarray([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0], [0, 1, 1, 0, 0], [0, 0, 0, 0, 0]])
    expected = [[0, 0, 0, 1, 2], [0, 1, 2, 2, 2], [0, 0, 1, 1, 1], [0, 0, 0, 0, 0]]
    np.testing.assert_array_equal(positions_of(segments), expected)
