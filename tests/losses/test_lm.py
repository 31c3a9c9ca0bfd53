import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrlhf import losses

LOGPROBS = jnp.asarray([[-1.0, -2.0, jnp.nan], [-6.0, -jnp.inf, jnp.inf]])
MASK = jnp.asarray([[True, True, False], [True, False, False]])


class LmLossTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True, with_pmap=True)
    def test_worked_example(self):
        loss, metrics = self.variant(losses.lm_loss)(LOGPROBS, MASK)
        assert loss == (1 + 2 + 6) / 3
        assert (metrics["loss"].sum, metrics["loss"].weight) == (9.0, 3.0)

    @chex.variants(with_jit=True, without_jit=True, with_pmap=True)
    def test_denom_replaces_the_count_in_the_loss_alone(self):
        loss, metrics = self.variant(losses.lm_loss)(LOGPROBS, MASK, denom=18)
        assert loss == 0.5
        assert metrics["loss"].value == 3.0


def test_gradient_is_minus_one_over_the_count_and_zero_in_padding(central_differences):
    def oracle(logprobs):
        return -np.asarray(logprobs)[MASK].sum() / 3

    gradient = jax.grad(lambda x: losses.lm_loss(x, MASK)[0])(LOGPROBS)
    np.testing.assert_allclose(gradient, [[-1 / 3, -1 / 3, 0], [-1 / 3, 0, 0]], rtol=1e-6)
    at = np.where(MASK, LOGPROBS, 0.0)
    np.testing.assert_allclose(gradient, central_differences(oracle, at), atol=1e-6)


def test_micro_batches_of_uneven_lengths_add_up_to_the_batch():
    rng = np.random.default_rng(0)
    logprobs = -jnp.asarray(rng.random((6, 5)), jnp.float32)
    mask = jnp.arange(5)[None, :] < jnp.asarray([5, 1, 0, 3, 2, 4])[:, None]

    def loss(logprobs, mask, denom=None):
        return losses.lm_loss(logprobs, mask, denom=denom)[0]

    run = jax.jit(jax.value_and_grad(loss))
    parts = [run(logprobs[i : i + 2], mask[i : i + 2], mask.sum()) for i in (0, 2, 4)]
    values, gradients = zip(*parts, strict=True)
    chex.assert_trees_all_close((sum(values), jnp.concatenate(gradients)), run(logprobs, mask), rtol=1e-6)


def test_devices_under_pmap_add_up_to_the_batch():
    rng = np.random.default_rng(0)
    logprobs = -jnp.asarray(rng.random((8, 5)), jnp.float32)
    mask = jnp.arange(5)[None, :] < jnp.asarray([5, 1, 0, 3, 2, 4, 5, 1])[:, None]

    def loss(logprobs, mask):
        total = jax.lax.psum(jnp.sum(mask), "devices")
        return jax.lax.psum(losses.lm_loss(logprobs, mask, denom=total)[0], "devices")

    per_device = jax.pmap(loss, axis_name="devices")(logprobs[:, None], mask[:, None])
    np.testing.assert_allclose(per_device, np.full(8, losses.lm_loss(logprobs, mask)[0]), rtol=1e-6)


def test_nothing_to_train_on_is_zero_with_zero_gradient():
    loss, gradient = jax.value_and_grad(lambda x: losses.lm_loss(x, jnp.zeros_like(MASK))[0])(LOGPROBS)
    assert loss == 0.0
    assert not jnp.any(gradient)


def test_shapes_that_would_broadcast_are_an_error():
    with pytest.raises(AssertionError):
        losses.lm_loss(LOGPROBS, MASK[:, :1])
