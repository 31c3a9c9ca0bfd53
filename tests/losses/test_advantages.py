import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrlhf import losses

DISCOUNT = {"gamma": 0.9, "lam": 0.8}


def plain_gae(rewards, values, lengths, gamma: float, lam: float):
    """The recursion token by token, in Python floats."""
    advantages, returns = np.zeros(rewards.shape), np.zeros(rewards.shape)
    for row, length in enumerate(lengths):
        after_value = after_advantage = 0.0
        for t in reversed(range(length)):
            delta = float(rewards[row, t]) + gamma * after_value - float(values[row, t])
            after_value, after_advantage = float(values[row, t]), delta + gamma * lam * after_advantage
            advantages[row, t], returns[row, t] = after_advantage, after_advantage + after_value
    return advantages, returns


def random_batch():
    rng = np.random.default_rng(2)
    rewards, values = rng.normal(size=(2, 4, 6)).astype(np.float32)
    lengths = np.asarray([6, 3, 0, 1])
    return rewards, values, np.arange(6)[None, :] < lengths[:, None], lengths


class GaeTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True, with_pmap=True)
    def test_worked_example_with_the_score_on_the_last_token(self):
        # A finished answer of three tokens, one whose length ran out, and an empty row.
        mask = jnp.asarray([[True, True, True, False], [True, True, True, True], [False, False, False, False]])
        kl = jnp.asarray([[0.1, -0.2, 0.3, jnp.nan], [0.0, 0.0, 0.0, 0.0], [9.0, 9.0, 9.0, 9.0]])
        values = jnp.asarray([[0.5, 1.0, 1.5, jnp.nan], [1.0, 1.0, 1.0, 1.0], [7.0, 7.0, 7.0, 7.0]])
        scores = jnp.asarray([2.0, -1.0, 5.0])

        def shape_and_estimate(scores, kl, values, mask):
            rewards = losses.kl_shaped_rewards(scores, kl, mask, kl_coef=0.5)
            return rewards, *losses.gae(rewards, values, mask, **DISCOUNT)

        rewards, advantages, returns = self.variant(shape_and_estimate)(scores, kl, values, mask)
        # Row 1: rewards -0.5 * kl, 2 added to the third.  gamma * lam = 0.72.
        #   t = 2: delta = 1.85 - 1.5 = 0.35                     A = 0.35
        #   t = 1: delta = 0.1 + 0.9 * 1.5 - 1 = 0.45            A = 0.45 + 0.72 * 0.35 = 0.702
        #   t = 0: delta = -0.05 + 0.9 * 1 - 0.5 = 0.35          A = 0.35 + 0.72 * 0.702 = 0.85544
        # Row 2: delta = -2 at the last token, 0.9 - 1 = -0.1 before it.
        #   A = -2, -0.1 - 0.72 * 2 = -1.54, -0.1 - 0.72 * 1.54 = -1.2088, -0.1 - 0.72 * 1.2088 = -0.970336
        nothing = [0.0] * 4
        np.testing.assert_allclose(rewards, [[-0.05, 0.1, 1.85, 0], [0, 0, 0, -1], nothing], rtol=1e-6)
        expected = np.asarray([[0.85544, 0.702, 0.35, 0], [-0.970336, -1.2088, -1.54, -2], nothing])
        np.testing.assert_allclose(advantages, expected, rtol=1e-6, atol=1e-7)
        before = np.asarray([[0.5, 1.0, 1.5, 0], [1, 1, 1, 1], nothing])
        np.testing.assert_allclose(returns, expected + before, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.8), (1.0, 1.0), (0.5, 0.0), (0.0, 1.0)])
def test_matches_a_plain_loop(gamma: float, lam: float):
    rewards, values, mask, lengths = random_batch()
    actual = jax.jit(losses.gae)(rewards, values, mask, gamma=gamma, lam=lam)
    chex.assert_type(actual, jnp.float32)
    chex.assert_trees_all_close(actual, plain_gae(rewards, values, lengths, gamma, lam), rtol=1e-5, atol=1e-6)


def test_undiscounted_returns_are_the_rewards_to_come():
    rewards, values, mask, _ = random_batch()
    _, returns = losses.gae(rewards, values, mask, gamma=1.0, lam=1.0)
    to_come = np.cumsum(np.where(mask, rewards, 0)[:, ::-1], axis=1)[:, ::-1]
    np.testing.assert_allclose(returns, np.where(mask, to_come, 0), rtol=1e-5, atol=1e-6)


@jax.jit
def estimates_and_gradients(rewards, values, mask):
    """Advantages and returns, and the gradients of a curved sum of both by rewards and values."""

    def total(rewards, values):
        advantages, returns = losses.gae(rewards, values, mask, **DISCOUNT)
        return jnp.sum(jnp.sin(advantages) + jnp.square(returns)), (advantages, returns)

    (_, estimates), gradients = jax.value_and_grad(total, (0, 1), has_aux=True)(rewards, values)
    return *estimates, *gradients


@pytest.mark.parametrize("filler", [math.nan, math.inf])
def test_padding_has_no_say_in_value_or_gradient(filler: float):
    rewards, values, mask, _ = random_batch()
    more = ((0, 1), (0, 2))
    dirty = [np.pad(np.where(mask, x, filler), more, constant_values=filler) for x in (rewards, values)]
    actual = estimates_and_gradients(*dirty, np.pad(mask, more))
    expected = [np.pad(x, more) for x in estimates_and_gradients(rewards, values, mask)]
    chex.assert_trees_all_close(list(actual), expected, rtol=1e-5, atol=1e-6)


def test_new_discounts_do_not_retrace():
    chex.clear_trace_counter()
    run = jax.jit(chex.assert_max_traces(losses.gae, n=1))
    rewards, values, mask, lengths = random_batch()
    for gamma, lam in ((1.0, 0.95), (0.9, 0.8)):
        actual = run(rewards, values, mask, gamma=gamma, lam=lam)
        chex.assert_trees_all_close(actual, plain_gae(rewards, values, lengths, gamma, lam), rtol=1e-5, atol=1e-6)


def test_shapes_that_would_broadcast_are_an_error():
    with pytest.raises(AssertionError):
        losses.gae(jnp.ones((2, 3)), jnp.ones((2, 1)), jnp.ones((2, 3), bool), **DISCOUNT)
