import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrlhf import losses, ops

RATIOS = np.asarray([[1.5, 0.5, 1.5, 0.5], [1.1, 1.3, 1.0, 1.0]])
ADVANTAGES = jnp.asarray([[1.0, 1.0, -1.0, -1.0], [2.0, 0.5, jnp.nan, jnp.inf]])
MASK = jnp.asarray([[True, True, True, True], [True, True, False, False]])
OLD = jnp.asarray([[-1.0, -2.0, -1.5, -0.5], [-3.0, -0.1, jnp.inf, jnp.nan]])
LOGPROBS = OLD + jnp.asarray(np.log(RATIOS), jnp.float32)
HYPER = {"clip_eps": 0.2}


def random_batch(rows: int = 4, length: int = 5):
    rng = np.random.default_rng(1)
    logprobs, noise, advantages = (rng.normal(size=(rows, length)).astype(np.float32) for _ in range(3))
    mask = np.arange(length)[None, :] < np.asarray([5, 2, 0, 3])[:, None]
    return logprobs, logprobs + 0.4 * noise, advantages, mask


@jax.jit
def loss_and_gradient(logprobs, old, advantages, mask, denom=None):
    """Loss and metrics, and the gradient by the log-probabilities."""

    def loss(logprobs):
        return losses.ppo_policy_loss(logprobs, old, advantages, mask, **HYPER, denom=denom)

    return jax.value_and_grad(loss, has_aux=True)(logprobs)


class PpoPolicyLossTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True, with_pmap=True)
    def test_worked_example(self):
        loss, metrics = self.variant(losses.ppo_policy_loss)(LOGPROBS, OLD, ADVANTAGES, MASK, **HYPER)
        # A = 1, r = 1.5: clipped to 1.2 costs -1.2, the larger.    A = 1, r = 0.5: -0.5, unclipped.
        # A = -1, r = 1.5: 1.5, unclipped.    A = -1, r = 0.5: clipped to 0.8 costs 0.8.    A = 2, r = 1.1: -2.2.
        # A = 0.5, r = 1.3: clipped to 1.2 costs -0.6.
        costs = [-1.2, -0.5, 1.5, 0.8, -2.2, -0.6]
        log_ratios = np.log([1.5, 0.5, 1.5, 0.5, 1.1, 1.3])
        np.testing.assert_allclose(loss, sum(costs) / 6, rtol=1e-5)
        expected = {
            "loss/policy_avg": sum(costs) / 6,
            "policy/approxkl_avg": 0.5 * (log_ratios**2).mean(),
            "policy/clipfrac_avg": 3 / 6,
            "val/ratio": (1.5 + 0.5 + 1.5 + 0.5 + 1.1 + 1.3) / 6,
        }
        chex.assert_trees_all_close(ops.values_of(metrics), expected, rtol=1e-5)

    @chex.variants(with_jit=True, without_jit=True, with_pmap=True)
    def test_at_the_policy_that_sampled_the_ratio_is_exactly_1(self):
        logprobs, _, advantages, mask = random_batch()
        loss, metrics = self.variant(losses.ppo_policy_loss)(logprobs, logprobs, advantages, mask, **HYPER)
        assert metrics["val/ratio"].value == 1.0
        assert metrics["policy/clipfrac_avg"].value == 0.0
        assert metrics["policy/approxkl_avg"].value == 0.0
        np.testing.assert_allclose(loss, -advantages[mask].mean(), rtol=1e-5)


def test_gradient_matches_central_differences(central_differences):
    logprobs, old, advantages, mask = random_batch()

    def oracle(logprobs):
        ratio = np.exp(logprobs - old.astype(np.float64))
        costs = np.maximum(-advantages * ratio, -advantages * np.clip(ratio, 0.8, 1.2))
        return costs[mask].sum() / mask.sum()

    _, gradient = loss_and_gradient(logprobs, old, advantages, mask)
    np.testing.assert_allclose(gradient, central_differences(oracle, logprobs), atol=1e-6)
    assert np.count_nonzero(gradient) < mask.sum()  # some tokens are clipped, so the test sees both sides


def test_no_gradient_where_the_ratio_is_clipped_and_none_to_what_is_fixed():
    run = jax.jit(jax.grad(lambda *arrays: losses.ppo_policy_loss(*arrays, MASK, **HYPER)[0], (0, 1, 2)))
    by_logprobs, by_old, by_advantages = run(LOGPROBS, OLD, ADVANTAGES)
    np.testing.assert_allclose(by_logprobs, np.asarray([[0, -0.5, 1.5, 0], [-2.2, 0, 0, 0]]) / 6, rtol=1e-5)
    assert not jnp.any(by_old) and not jnp.any(by_advantages)


@pytest.mark.parametrize("filler", [math.nan, math.inf, 1e30])
def test_padding_has_no_say_in_loss_gradient_or_metrics(filler: float):
    logprobs, old, advantages, mask = random_batch()
    more = ((0, 1), (0, 2))
    out, gradient = loss_and_gradient(logprobs, old, advantages, mask)
    expected = (out, np.pad(gradient, more))
    dirty = [np.pad(np.where(mask, x, filler), more, constant_values=filler) for x in (old, advantages)]
    for own_filler in (filler, 0.0):  # inf - inf is NaN, 0 - inf is -inf: the ratio may be anything
        own = np.pad(np.where(mask, logprobs, own_filler), more, constant_values=own_filler)
        chex.assert_trees_all_close(loss_and_gradient(own, *dirty, np.pad(mask, more)), expected, rtol=1e-6)


def test_micro_batches_of_uneven_lengths_add_up_to_the_batch():
    arrays = random_batch()
    tokens = arrays[-1].sum()
    parts = [loss_and_gradient(*(x[rows] for x in arrays), tokens) for rows in (slice(0, 2), slice(2, 4))]
    (whole, _), gradient = loss_and_gradient(*arrays)
    np.testing.assert_allclose(sum(loss for (loss, _), _ in parts), whole, rtol=1e-5)
    np.testing.assert_allclose(np.concatenate([part for _, part in parts]), gradient, rtol=1e-5)


def test_a_new_clip_range_does_not_retrace():
    chex.clear_trace_counter()
    run = jax.jit(chex.assert_max_traces(losses.ppo_policy_loss, n=1))
    tight, loose = (run(*random_batch(), clip_eps=eps)[1] for eps in (0.1, 0.3))
    assert tight["policy/clipfrac_avg"].value > loose["policy/clipfrac_avg"].value


def test_bfloat16_log_probabilities_are_subtracted_in_float32():
    logprobs, old = (jnp.asarray([[x]], jnp.bfloat16) for x in (-1.0, -(2.0**-10)))
    _, metrics = losses.ppo_policy_loss(logprobs, old, jnp.ones((1, 1)), jnp.ones((1, 1), bool), **HYPER)
    assert metrics["val/ratio"].value.dtype == jnp.float32
    np.testing.assert_allclose(metrics["val/ratio"].value, math.exp(-1.0 + 2.0**-10), rtol=1e-5)


def test_shapes_that_would_broadcast_are_an_error():
    with pytest.raises(AssertionError):
        losses.ppo_policy_loss(LOGPROBS, OLD, ADVANTAGES[:, :1], MASK, **HYPER)
