import math
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrlhf import losses
from jaxrlhf.losses.kl import last_token

MASK = jnp.asarray([[True, True, False], [True, True, True], [False, False, False]])
KL = jnp.asarray([[0.1, -0.2, jnp.nan], [1.0, 2.0, 3.0], [jnp.inf, jnp.nan, 1.0]])
SCORES = jnp.asarray([2.0, -1.0, jnp.nan])


class KlTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True, with_pmap=True)
    def test_estimates(self):
        def estimates(logprobs, ref_logprobs):
            return [losses.kl_estimate(logprobs, ref_logprobs, kind) for kind in ("k1", "k2", "k3")]

        # d = ln 2 and -ln 2: k3 = 1/2 - 1 + ln 2 and 2 - 1 - ln 2.
        ln2 = math.log(2.0)
        k1, k2, k3 = self.variant(estimates)(jnp.asarray([[-1.0, -1.0 - ln2]]), jnp.asarray([[-1.0 - ln2, -1.0]]))
        np.testing.assert_allclose(k1, [[ln2, -ln2]], rtol=1e-6)
        np.testing.assert_allclose(k2, [[ln2**2 / 2, ln2**2 / 2]], rtol=1e-6)
        np.testing.assert_allclose(k3, [[ln2 - 0.5, 1.0 - ln2]], rtol=1e-6)

    @chex.variants(with_jit=True, without_jit=True, with_pmap=True)
    def test_the_score_is_added_at_the_last_token(self):
        # Row 1 ends at its end-of-sequence token, row 2 ran out of length, row 3 is empty.
        rewards = self.variant(losses.kl_shaped_rewards)(SCORES, KL, MASK, kl_coef=0.5)
        np.testing.assert_allclose(rewards, [[-0.05, 0.1 + 2.0, 0], [-0.5, -1.0, -1.5 - 1.0], [0, 0, 0]], rtol=1e-6)


def test_default_estimate_is_k1():
    assert losses.kl_estimate(jnp.asarray(-1.0), jnp.asarray(-3.0)) == 2.0


def test_k3_is_never_negative_and_keeps_small_differences():
    size = np.logspace(-12, 1, 500)
    d = jnp.asarray(np.concatenate([size, -size]), jnp.float32)
    k3 = losses.kl_estimate(d, jnp.zeros_like(d), "k3")
    assert jnp.all(k3 >= 0)
    exact = np.expm1(-np.asarray(d, np.float64)) + np.asarray(d, np.float64)
    np.testing.assert_allclose(k3, exact, rtol=1e-3, atol=1e-10)


def test_means_of_k1_and_k3_estimate_the_kl_and_k2_nearly():
    policy, reference = np.asarray([0.5, 0.3, 0.2]), np.asarray([0.4, 0.4, 0.2])
    exact = float((policy * np.log(policy / reference)).sum())  # 0.0253
    tokens = np.random.default_rng(0).choice(3, size=200_000, p=policy)
    logprobs, ref_logprobs = (jnp.asarray(np.log(p)[tokens], jnp.float32) for p in (policy, reference))
    means = {kind: float(jnp.mean(losses.kl_estimate(logprobs, ref_logprobs, kind))) for kind in ("k1", "k2", "k3")}
    # Standard errors: the spread of k1 is 0.22 and that of k3 0.015, over the square root of 200,000.
    assert abs(means["k1"] - exact) < 4 * 0.23 / 200_000**0.5
    assert abs(means["k3"] - exact) < 4 * 0.016 / 200_000**0.5
    assert abs(means["k2"] - exact) < 0.05 * exact
    expected_k2 = float((policy * np.log(policy / reference) ** 2).sum() / 2)
    np.testing.assert_allclose(means["k2"], expected_k2, rtol=0.01)


def test_expected_gradients_are_as_the_docstring_says(central_differences):
    weights, reference = np.asarray([0.2, -0.1, 0.4]), np.log([0.4, 0.4, 0.2])

    def exact_kl(logits):
        logprobs = logits - np.log(np.exp(logits).sum())
        return float((np.exp(logprobs) * (logprobs - reference)).sum())

    def expected_estimate(logits, kind):
        logprobs = jax.nn.log_softmax(logits)
        sampled = jax.lax.stop_gradient(jnp.exp(logprobs))  # tokens are drawn, and draws carry no gradient
        return jnp.sum(sampled * losses.kl_estimate(logprobs, jnp.asarray(reference, jnp.float32), kind))

    run = jax.jit(jax.grad(expected_estimate), static_argnums=1)
    k1, k2, k3 = (run(jnp.asarray(weights, jnp.float32), kind) for kind in ("k1", "k2", "k3"))
    truth = central_differences(exact_kl, weights)
    np.testing.assert_allclose(k1, np.zeros(3), atol=1e-7)
    np.testing.assert_allclose(k2, truth, atol=1e-6)
    assert np.abs(k3 - truth).max() > 0.05 * np.abs(truth).max()


def test_unknown_estimate_is_an_error_that_names_the_choices():
    with pytest.raises(ValueError, match=r"kind='k4'.*'k1', 'k2', 'k3'"):
        losses.kl_estimate(KL, KL, "k4")


def test_padding_has_no_say_in_rewards_or_gradient():
    def total(scores, kl):
        return jnp.sum(jnp.sin(losses.kl_shaped_rewards(scores, kl, MASK, kl_coef=0.5)))

    run = jax.jit(jax.grad(total, (0, 1)))
    gradients = run(SCORES, KL)
    clean = run(jnp.nan_to_num(SCORES), jnp.where(MASK, KL, 0.0))
    chex.assert_trees_all_equal(gradients, clean)
    assert not jnp.any(gradients[1][~MASK]) and gradients[0][2] == 0.0


def test_rewards_are_float32_for_bfloat16_inputs():
    kl = jnp.full((1, 2), 1.0 / 3.0, jnp.bfloat16)
    rewards = losses.kl_shaped_rewards(jnp.ones(1, jnp.bfloat16), kl, jnp.ones((1, 2), bool), kl_coef=0.01)
    assert rewards.dtype == jnp.float32
    np.testing.assert_allclose(rewards[0, 1], 1.0 - 0.01 * float(kl[0, 1]), rtol=1e-6)


def test_a_new_coefficient_does_not_retrace():
    chex.clear_trace_counter()
    run = jax.jit(chex.assert_max_traces(losses.kl_shaped_rewards, n=1))
    rewards = [run(SCORES, KL, MASK, kl_coef=coef)[1, 1] for coef in (0.05, 0.1)]
    np.testing.assert_allclose(rewards, [-0.1, -0.2], rtol=1e-6)


def test_last_token_of_each_row():
    mask = jnp.asarray([[True, True, False], [False, True, True], [True, False, False], [False, False, False]])
    expected = [[False, True, False], [False, False, True], [True, False, False], [False, False, False]]
    np.testing.assert_array_equal(last_token(mask), expected)


def test_shapes_that_would_broadcast_are_an_error():
    with pytest.raises(AssertionError):
        losses.kl_shaped_rewards(SCORES[:, None], KL, MASK, kl_coef=0.1)


def tiny_policy(logits: jax.Array) -> jax.Array:
    return jax.nn.log_softmax(logits)


@pytest.mark.parametrize("behind", [False, True])
def test_the_unbiased_kl_has_the_gradient_of_the_exact_one(behind):
    """Over all tokens of a categorical policy, weighted as they are sampled; `behind`: by an older policy."""
    rng = np.random.default_rng(3)
    logits, ref, old = (jnp.asarray(rng.normal(size=6), jnp.float32) for _ in range(3))
    old = old if behind else logits
    exact = jax.grad(lambda x: jnp.sum(jnp.exp(tiny_policy(x)) * (tiny_policy(x) - tiny_policy(ref))))(logits)

    def expected_loss(estimate):
        return jax.grad(lambda x: jnp.sum(jnp.exp(tiny_policy(old)) * estimate(tiny_policy(x))))(logits)

    unbiased = expected_loss(lambda own: losses.unbiased_kl(own, tiny_policy(ref), tiny_policy(old)))
    np.testing.assert_allclose(unbiased, exact, atol=1e-6)
    if not behind:
        biased = expected_loss(lambda own: losses.kl_estimate(own, tiny_policy(ref), "k3"))
        assert np.abs(biased - exact).max() > 0.05
        zero = expected_loss(lambda own: losses.kl_estimate(own, tiny_policy(ref), "k1"))
        np.testing.assert_allclose(zero, 0.0, atol=1e-6)
        second = expected_loss(lambda own: losses.kl_estimate(own, tiny_policy(ref), "k2"))
        np.testing.assert_allclose(second, exact, atol=1e-6)


def test_the_unbiased_kl_is_worth_the_kl():
    rng = np.random.default_rng(4)
    own, ref, old = (tiny_policy(jnp.asarray(rng.normal(size=6), jnp.float32)) for _ in range(3))
    exact = jnp.sum(jnp.exp(own) * (own - ref))
    per_token = losses.unbiased_kl(own, ref, old)
    assert (per_token >= 0).all()
    np.testing.assert_allclose(jnp.sum(jnp.exp(old) * per_token), exact, rtol=1e-5)


@pytest.mark.parametrize("kl, factor", [(9.0, 1.05), (6.6, 1.025), (6.0, 1.0), (4.0, 0.95), (-3.0, 0.95)])
def test_the_adapted_price_follows_the_error_up_to_a_fifth(kl: float, factor: float):
    found = losses.adapted_kl_coef(
        jnp.float32(0.2), jnp.float32(kl), target=6.0, horizon=256.0, answers=jnp.float32(64.0)
    )
    assert found == pytest.approx(0.2 * factor, rel=1e-6)


def test_without_an_answer_the_price_stays():
    found = losses.adapted_kl_coef(
        jnp.float32(0.2), jnp.float32(jnp.nan), target=6.0, horizon=10.0, answers=jnp.float32(0.0)
    )
    assert found == jnp.float32(0.2)


@pytest.mark.parametrize("exact", [False, True])
def test_the_expected_policy_gradient_is_that_of_the_kl(exact: bool):
    """Two tokens of three words each, the second depending on the first: all nine answers, by their odds."""
    rng = np.random.default_rng(0)
    params = {"first": jnp.asarray(rng.normal(size=3)), "second": jnp.asarray(rng.normal(size=(3, 3)))}
    reference = {"first": jnp.asarray(rng.normal(size=3)), "second": jnp.asarray(rng.normal(size=(3, 3)))}
    a, b = (grid.ravel() for grid in np.meshgrid(np.arange(3), np.arange(3), indexing="ij"))

    def tables(p: Any) -> Any:
        return jax.nn.log_softmax(p["first"]), jax.nn.log_softmax(p["second"], axis=1)

    def logprobs(p: Any) -> jax.Array:
        first, second = tables(p)
        return jnp.stack([first[a], second[a, b]], axis=1)  # [9, 2]

    def token_kls(p: Any) -> jax.Array:
        (p1, p2), (q1, q2) = tables(p), tables(reference)
        second = jnp.sum(jnp.exp(p2) * (p2 - q2), axis=1)
        return jnp.stack([jnp.full(9, jnp.sum(jnp.exp(p1) * (p1 - q1))), second[a]], axis=1)

    def kl(p: Any) -> jax.Array:
        odds = jnp.exp(logprobs(p).sum(axis=1))
        return jnp.sum(odds * (logprobs(p) - logprobs(reference)).sum(axis=1))

    drawn, ref, mask = logprobs(params), logprobs(reference), jnp.ones((9, 2), bool)
    penalty = token_kls(params) if exact else losses.kl_estimate(drawn, ref)
    rewards = losses.kl_shaped_rewards(jnp.zeros(9), penalty, mask, kl_coef=1.0)
    blind, _ = losses.gae(rewards, jnp.zeros((9, 2)), mask, gamma=1.0, lam=1.0)
    credit = losses.own_token_credit(drawn, ref, penalty, mask, kl_coef=1.0)

    def gradient(advantages: jax.Array) -> Any:
        odds = jnp.exp(drawn.sum(axis=1))
        return jax.grad(lambda p: -jnp.sum(odds * jnp.sum(logprobs(p) * advantages, axis=1)))(params)

    chex.assert_trees_all_close(gradient(blind + credit), jax.grad(kl)(params), rtol=1e-4, atol=1e-6)
    distance = jnp.abs(gradient(blind)["second"] - jax.grad(kl)(params)["second"]).max()
    assert (distance > 0.01) == exact  # the exact KL alone teaches the last token nothing
