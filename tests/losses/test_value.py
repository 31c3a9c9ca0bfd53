import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrlhf import losses

VALUES = jnp.asarray([[1.0, 0.0, 0.1], [2.0, jnp.nan, jnp.inf]])
OLD = jnp.asarray([[0.5, 0.5, 0.0], [0.0, jnp.nan, -jnp.inf]])
RETURNS = jnp.asarray([[1.0, 1.0, 0.3], [3.0, jnp.nan, jnp.inf]])
MASK = jnp.asarray([[True, True, True], [True, False, False]])
HYPER = {"clip_eps": 0.2}


def random_batch():
    rng = np.random.default_rng(3)
    values, old, returns = rng.normal(size=(3, 4, 5)).astype(np.float32)
    mask = np.arange(5)[None, :] < np.asarray([5, 2, 0, 3])[:, None]
    return values, values + 0.3 * old, returns, mask


@jax.jit
def loss_and_gradient(values, old, returns, mask, clip_eps=0.2, denom=None):
    """Loss and metrics, and the gradient by the values."""

    def loss(values):
        return losses.ppo_value_loss(values, old, returns, mask, clip_eps=clip_eps, denom=denom)

    return jax.value_and_grad(loss, has_aux=True)(values)


class PpoValueLossTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True, with_pmap=True)
    def test_worked_example(self):
        loss, metrics = self.variant(losses.ppo_value_loss)(VALUES, OLD, RETURNS, MASK, **HYPER)
        # V 1 near 0.5: clipped to 0.7, errors 0 and 0.3^2, clipped is larger.  V 0 near 0.5: clipped to 0.3, errors 1
        # and 0.7^2.  V 0.1 near 0: not clipped, 0.2^2.  V 2 near 0: clipped to 0.2, errors 1 and 2.8^2, clipped larger.
        squares = [0.09, 1.0, 0.04, 7.84]
        np.testing.assert_allclose(loss, 0.5 * sum(squares) / 4, rtol=1e-5)
        np.testing.assert_allclose(metrics["loss/value_avg"].value, 0.5 * sum(squares) / 4, rtol=1e-5)
        assert metrics["val/clipfrac_avg"].value == 2 / 4


def test_an_infinite_range_is_half_the_squared_error():
    (loss, metrics), gradient = loss_and_gradient(VALUES, OLD, RETURNS, MASK, math.inf)
    np.testing.assert_allclose(loss, 0.5 * (0 + 1 + 0.04 + 1) / 4, rtol=1e-5)
    assert metrics["val/clipfrac_avg"].value == 0.0
    np.testing.assert_allclose(gradient, np.asarray([[0, -1, -0.2], [-1, 0, 0]]) / 4, rtol=1e-5)


def test_gradient_matches_central_differences(central_differences):
    values, old, returns, mask = random_batch()

    def oracle(values):
        near = np.clip(values, old - 0.2, old + 0.2)
        return 0.5 * np.maximum((values - returns) ** 2, (near - returns) ** 2)[mask].sum() / mask.sum()

    _, gradient = loss_and_gradient(values, old, returns, mask)
    np.testing.assert_allclose(gradient, central_differences(oracle, values), atol=1e-6)
    assert np.count_nonzero(gradient) < mask.sum()  # some values are clipped, so the test sees both sides


def test_no_gradient_to_what_is_fixed():
    run = jax.jit(jax.grad(lambda *arrays: losses.ppo_value_loss(*arrays, MASK, **HYPER)[0], (1, 2)))
    assert not any(jnp.any(gradient) for gradient in run(VALUES, OLD, RETURNS))


@pytest.mark.parametrize("filler", [math.nan, math.inf, 1e30])
def test_padding_has_no_say_in_loss_gradient_or_metrics(filler: float):
    *arrays, mask = random_batch()
    more = ((0, 1), (0, 2))
    dirty = [np.pad(np.where(mask, x, filler), more, constant_values=filler) for x in arrays]
    out, gradient = loss_and_gradient(*arrays, mask)
    actual = loss_and_gradient(*dirty, np.pad(mask, more))
    chex.assert_trees_all_close(actual, (out, np.pad(gradient, more)), rtol=1e-5)


def test_micro_batches_of_uneven_lengths_add_up_to_the_batch():
    arrays = random_batch()
    tokens = arrays[-1].sum()
    parts = [loss_and_gradient(*(x[rows] for x in arrays), denom=tokens) for rows in (slice(0, 2), slice(2, 4))]
    (whole, _), gradient = loss_and_gradient(*arrays)
    np.testing.assert_allclose(sum(loss for (loss, _), _ in parts), whole, rtol=1e-5)
    np.testing.assert_allclose(np.concatenate([part for _, part in parts]), gradient, rtol=1e-5)


def test_a_new_clip_range_does_not_retrace():
    chex.clear_trace_counter()
    run = jax.jit(chex.assert_max_traces(losses.ppo_value_loss, n=1))
    tight, loose = (run(*random_batch(), clip_eps=eps)[1] for eps in (0.05, 0.5))
    assert tight["val/clipfrac_avg"].value > loose["val/clipfrac_avg"].value


def test_shapes_that_would_broadcast_are_an_error():
    with pytest.raises(AssertionError):
        losses.ppo_value_loss(VALUES, OLD, RETURNS[:, :1], MASK, **HYPER)
