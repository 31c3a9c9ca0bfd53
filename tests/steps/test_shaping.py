"""From scores and KL to advantages: worked numbers, and what is carried from one rollout to the next."""

import dataclasses
import functools
import math
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrlhf.losses import whiten
from jaxrlhf.ops.moments import no_moments
from jaxrlhf.ops.stats import values_of
from jaxrlhf.steps.experience import Experience
from jaxrlhf.steps.shaping import FIXED, Normalize, Running, adapt, make_rollout, observe
from tests.fakes import hyper
from tests.steps.experiences import HYPER, KL, MASK, experience


@functools.partial(jax.jit, static_argnames=("whiten_rewards", "normalize"))
def rolled(
    experience: Experience,
    whiten_rewards: bool = False,
    values: Any = HYPER,
    running: Running = FIXED,
    normalize: Normalize = "none",
):
    rollout, metrics = make_rollout(experience, values, running, whiten_rewards=whiten_rewards, normalize=normalize)
    return rollout, values_of(metrics)


def test_the_score_lands_on_the_last_token_and_the_kl_on_every_one():
    rollout, _ = rolled(experience(gold=[2.0, -1.0, 4.0, 7.0]))
    # lambda = 1/2 and V = 0: each advantage is its reward and half of the next advantage.
    #   row 0, ends with EOS: rewards -0.05, 0, 0.05 + 2.    row 1, EOS at its second token: -0.1, -1.
    #   row 2, cut off: 0, 0, 4 - 1 for the missing EOS.     row 3 has no prompt.
    expected = [[-0.05 + 1.025 / 2, 2.05 / 2, 2.05], [-0.1 - 0.5, -1.0, 0.0], [0.75, 1.5, 3.0], [0.0, 0.0, 0.0]]
    np.testing.assert_allclose(rollout.returns, expected, rtol=1e-5, atol=1e-7)
    kept = MASK & np.asarray([[True], [True], [True], [False]])
    np.testing.assert_array_equal(rollout.mask, kept)
    np.testing.assert_allclose(rollout.advantages, whiten(jnp.asarray(expected), jnp.asarray(kept)), rtol=1e-4)


def test_returns_take_the_critic_into_account():
    values = np.where(MASK, np.asarray([[0.5, 1.0, -1.0]], np.float32), 0.0).astype(np.float32)
    plain = dataclasses.replace(
        experience(gold=[2.0, 0.0, 0.0, 0.0]), values=values, ref_logprobs=np.float32(-2.0) * MASK
    )
    rollout, _ = rolled(plain, values={**HYPER, "gamma": jnp.float32(0.9)})
    # deltas: 2 - (-1) = 3;  0.9 * (-1) - 1 = -1.9;  0.9 * 1 - 0.5 = 0.4; each advantage adds 0.45 of the next.
    last, middle = 3.0, -1.9 + 0.45 * 3.0
    np.testing.assert_allclose(rollout.returns[0], [0.4 + 0.45 * middle + 0.5, middle + 1.0, last - 1.0], rtol=1e-5)


def test_metrics_leave_padding_rows_out():
    _, metrics = rolled(experience(gold=[2.0, -1.0, 4.0, 700.0]))
    expected = {
        "objective/kl": (0.0 + 1.0 + 0.0) / 3,
        "objective/entropy": 2.0 * (3 + 2 + 3) / 3,
        "objective/non_score_reward": -0.1 / 3,
        "objective/scores": 5.0 / 3,
        "objective/rlhf_reward": (2.0 - 1.0 - 0.1 + 3.0) / 3,
        "objective/unscored": 0.0,
        "rewards/gold/mean": 5.0 / 3,
        "val/num_eos_tokens": 2.0,
        "completions/mean_length": 8 / 3,
        "completions/min_length": 2.0,
        "completions/max_length": 3.0,
        "completions/clipped_ratio": 1 / 3,
        "sampling/sampling_logp_difference/mean": 1.0,
        "sampling/sampling_logp_difference/max": 1.0,
        "num_tokens": 4.0 + 3.0 + 5.0,
    }
    chex.assert_trees_all_close(metrics, expected, rtol=1e-5)


@pytest.mark.parametrize("unknown", [jnp.nan, jnp.inf])
def test_an_answer_without_a_score_teaches_nothing_and_is_counted(unknown: float):
    rollout, metrics = rolled(experience(gold=[2.0, unknown, 4.0, unknown]))
    np.testing.assert_array_equal(rollout.mask, MASK & np.asarray([[True], [False], [True], [False]]))
    assert all(jnp.isfinite(leaf).all() for leaf in (rollout.advantages, rollout.returns))
    assert not rollout.advantages[1].any() and not rollout.returns[1].any()
    assert metrics["objective/unscored"] == 1.0
    assert metrics["objective/scores"] == 3.0
    assert metrics["objective/kl"] == pytest.approx(1 / 3)  # its tokens are the policy's all the same
    assert metrics["completions/mean_length"] == pytest.approx(8 / 3)  # the answer is still an answer


def test_rewards_are_summed_and_reported_apart():
    both, metrics = rolled(experience(gold=[2.0, -1.0, 4.0, 0.0], length=[-1.0, 0.5, 0.5, 0.0]))
    one, _ = rolled(experience(gold=[1.0, -0.5, 4.5, 0.0]))
    chex.assert_trees_all_close(both, one, rtol=1e-6)
    np.testing.assert_allclose(metrics["rewards/gold/mean"], 5 / 3, rtol=1e-6)
    np.testing.assert_allclose(metrics["rewards/length/mean"], 0.0, atol=1e-7)
    np.testing.assert_allclose(metrics["objective/scores"], 5 / 3, rtol=1e-6)


def test_whitened_rewards_have_variance_1_and_keep_their_mean():
    rewards = np.asarray([-0.05, 0.0, 2.05, -0.1, -1.0, 0.0, 0.0, 3.0])  # as above, row by row
    scaled = (rewards - rewards.mean()) / rewards.std(ddof=1) + rewards.mean()
    no_trace = {**HYPER, "lam": jnp.float32(0.0), "gamma": jnp.float32(0.0)}  # a return is its reward
    rollout, _ = rolled(experience(gold=[2.0, -1.0, 4.0, 0.0]), whiten_rewards=True, values=no_trace)
    np.testing.assert_allclose(rollout.returns[rollout.mask], scaled, rtol=1e-5, atol=1e-6)


def no_trace(**values: float) -> Any:
    """Hyper-parameters with which a return is its reward."""
    return {**HYPER, **hyper(lam=0.0, gamma=0.0, **values)}


def test_scores_are_normalised_by_all_scores_so_far_and_then_clipped():
    running = observe(Running(scores=no_moments()), experience(gold=[9.0, 7.0, 5.0, 1000.0]))  # the last is padding
    now = experience(gold=[3.0, -1.0, 4.0, 0.0])
    running = observe(running, now)
    seen = np.asarray([9.0, 7.0, 5.0, 3.0, -1.0, 4.0])
    assert running.scores is not None and running.scores.number == 6
    np.testing.assert_allclose([running.scores.mean, running.scores.std], [seen.mean(), seen.std(ddof=1)], rtol=1e-6)
    last = np.asarray([[0, 2], [1, 1], [2, 2]]).T
    scores = np.asarray([3.0, -1.0, 4.0])
    for normalize, centre in (("scale", 0.0), ("standardize", seen.mean())):
        for clip in (math.inf, 0.25):
            values = no_trace(kl_coef=0.0, missing_eos_penalty=0.5, score_clip=clip)
            rollout, metrics = rolled(now, running=running, normalize=normalize, values=values)
            expected = np.clip((scores - centre) / seen.std(ddof=1), -clip, clip) - [0.0, 0.0, 0.5]  # cut off
            np.testing.assert_allclose(rollout.returns[tuple(last)], expected, rtol=1e-5)
            assert metrics["objective/scores"] == pytest.approx(2.0)  # what the judges said
            assert metrics["objective/running_score_mean"] == pytest.approx(seen.mean())


@pytest.mark.parametrize("score", [3.0, 0.1, -0.7])  # the last two are no sums of powers of two
def test_equal_scores_have_no_deviation_to_divide_by(score: float):
    now = experience(gold=[score, score, score, 0.0])
    running = observe(observe(Running(scores=no_moments()), now), now)
    for normalize, expected in (("scale", score), ("standardize", 0.0)):
        rollout, _ = rolled(now, running=running, normalize=normalize, values=no_trace(kl_coef=0.0))
        assert rollout.returns[0, 2] == pytest.approx(expected)


def test_an_unscored_answer_is_not_in_the_running_scores():
    running = observe(Running(scores=no_moments()), experience(gold=[3.0, math.nan, 5.0, 0.0]))
    assert running.scores is not None and running.scores.number == 2 and running.scores.mean == 4.0


def test_the_price_of_a_nat_rises_above_its_target_and_falls_below_it():
    now = experience(gold=[0.0, 0.0, 0.0, 0.0])  # KL 0, 1 and 0 of three answers: 1/3
    for target, factor in ((0.3, 1 + (1 / 0.9 - 1) * 3 / 30), (0.1, 1 + 0.2 * 3 / 30), (3.0, 1 - 0.2 * 3 / 30)):
        found = adapt(Running(kl_coef=jnp.float32(0.5)), now, hyper(kl_target=target, kl_horizon=30.0))
        assert found.kl_coef == pytest.approx(0.5 * factor, rel=1e-6)
    assert adapt(FIXED, now, {}) == observe(FIXED, now) == FIXED


def test_an_adaptive_price_takes_the_place_of_the_fixed_one():
    now = experience(gold=[2.0, -1.0, 4.0, 0.0])
    adaptive, metrics = rolled(now, running=Running(kl_coef=jnp.float32(0.7)))
    fixed, _ = rolled(now, values={**HYPER, "kl_coef": jnp.float32(0.7)})
    chex.assert_trees_all_equal(adaptive, fixed)
    assert metrics["objective/kl_coef"] == pytest.approx(0.7)
    assert metrics["objective/non_score_reward"] == pytest.approx(-0.7 / 3)


def test_the_exact_kl_takes_the_place_of_the_estimate_in_rewards_and_metrics():
    exact = np.where(MASK, np.asarray([[0.2, 0.1, 0.3], [0.4, 0.0, 0.0], [0.1, 0.1, 0.1], [9, 0, 0]]), 0.0)
    now = dataclasses.replace(experience(gold=[2.0, -1.0, 4.0, 0.0]), kl=exact.astype(np.float32))
    rollout, metrics = rolled(now, values=no_trace(kl_coef=0.1))
    assert metrics["objective/kl"] == pytest.approx((0.6 + 0.4 + 0.3) / 3)
    rewards = -0.1 * exact[:3] + np.asarray([[0, 0, 2], [0, -1, 0], [0, 0, 3]])
    np.testing.assert_allclose(rollout.returns[:3], np.where(MASK[:3], rewards, 0), rtol=1e-5, atol=1e-7)
    kept = MASK & np.asarray([[True], [True], [True], [False]])
    own = rewards - 0.1 * (KL[:3] - exact[:3])  # of the token itself, the estimate
    own = np.concatenate([own, np.zeros((1, 3))])
    np.testing.assert_allclose(rollout.advantages, whiten(jnp.asarray(own), jnp.asarray(kept)), rtol=1e-4, atol=1e-5)
    whitened, _ = rolled(
        now, whiten_rewards=True, values=no_trace(kl_coef=0.1)
    )  # at gamma = lambda = 0 all scale alike
    np.testing.assert_allclose(whitened.advantages, rollout.advantages, rtol=1e-3, atol=1e-4)
