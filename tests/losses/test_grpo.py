"""GRPO: advantages in groups, the averages, the loss."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrlhf import losses, ops

NAN = math.nan
REWARDS = jnp.asarray([[1.0, 2.0, 6.0], [5.0, NAN, 1.0], [4.0, NAN, NAN], [7.0, 7.0, 7.0]])
VALID = jnp.asarray([[True, True, True], [True, False, True], [True, False, False], [True, True, True]])


def random_batch(rows: int = 4, length: int = 5):
    rng = np.random.default_rng(1)
    logprobs, noise = (rng.normal(size=(rows, length)).astype(np.float32) for _ in range(2))
    mask = np.arange(length)[None, :] < np.asarray([5, 2, 0, 3])[:rows, None]
    return logprobs, logprobs + 0.4 * noise, np.asarray([1.0, -0.5, 3.0, -2.0], np.float32)[:rows], mask


class AdvantagesTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_worked_example(self):
        found = self.variant(losses.group_advantages)(REWARDS, VALID)
        # Row 0: mean 3, deviations -2, -1, 3, variance 14 / 2.    Row 1: mean 3, deviations 2, -2, variance 8 / 1.
        first, second = math.sqrt(7.0) + 1e-4, math.sqrt(8.0) + 1e-4
        expected = [[-2 / first, -1 / first, 3 / first], [2 / second, 0, -2 / second], [0, 0, 0], [0, 0, 0]]
        np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize(
    "baseline, expected",
    [
        ("mean", [[-2, -1, 3], [2, 0, -2], [0, 0, 0], [0, 0, 0]]),
        ("leave_one_out", [[1 - 4, 2 - 3.5, 6 - 1.5], [5 - 1, 0, 1 - 5], [0, 0, 0], [0, 0, 0]]),
        ("none", [[1, 2, 6], [5, 0, 1], [4, 0, 0], [7, 7, 7]]),
    ],
)
def test_baselines(baseline, expected):
    found = losses.group_advantages(REWARDS, VALID, baseline=baseline, scale="none")
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_the_batch_scale_is_the_deviation_of_all_valid_rewards():
    found = losses.group_advantages(REWARDS, VALID, scale="batch")
    deviation = np.std(np.asarray(REWARDS)[np.asarray(VALID)], ddof=1)
    np.testing.assert_allclose(found[0], np.asarray([-2.0, -1.0, 3.0]) / (deviation + 1e-4), rtol=1e-5)


def test_group_deviations_of_equal_and_of_single_rewards_are_exactly_0():
    rewards = jnp.asarray([[0.1, 0.1, 0.1], [0.7, 5.0, 5.0], [1.0, 2.0, 6.0]])
    valid = jnp.asarray([[True, True, True], [True, False, False], [True, True, True]])
    np.testing.assert_allclose(losses.group_std(rewards, valid), [0.0, 0.0, math.sqrt(7.0)], rtol=1e-6)


@pytest.mark.parametrize("scale", ["group", "batch"])
def test_rewards_that_do_not_differ_are_not_blown_up_where_there_is_no_baseline(scale):
    rewards, valid = jnp.asarray([[2.0, 2.0], [2.0, 2.0]]), jnp.ones((2, 2), bool)
    assert not losses.group_advantages(rewards, valid, baseline="none", scale=scale).any()
    alone = losses.group_advantages(rewards[:, :1], valid[:, :1], baseline="none", scale="group")
    assert not alone.any()


@pytest.mark.parametrize("baseline", ["mean", "leave_one_out"])
@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_equal_rewards_teach_exactly_nothing(baseline, scale):
    equal = jnp.full((3, 7), 0.1)  # seven times 0.1 is not 0.7 in float32
    found = losses.group_advantages(equal, jnp.ones((3, 7), bool), baseline=baseline, scale=scale)
    assert not found.any()


@pytest.mark.parametrize("baseline", ["mean", "leave_one_out"])
def test_a_shift_changes_nothing_and_a_factor_only_what_is_not_scaled(baseline):
    rng = np.random.default_rng(0)
    rewards, valid = jnp.asarray(rng.normal(size=(5, 4)), jnp.float32), jnp.asarray(rng.random((5, 4)) < 0.8)

    def found(values, scale):
        return losses.group_advantages(values, valid, baseline=baseline, scale=scale)

    shift = jnp.asarray(rng.normal(size=(5, 1)) * 8, jnp.float32)
    np.testing.assert_allclose(found(rewards + shift, "group"), found(rewards, "group"), atol=2e-5)
    np.testing.assert_allclose(found(64 * rewards, "none"), 64 * found(rewards, "none"), rtol=1e-6)
    np.testing.assert_allclose(found(64 * rewards, "group"), found(rewards, "group"), rtol=2e-2, atol=1e-3)


def test_averages_by_hand():
    costs = jnp.asarray([[1.0, 3.0, NAN], [5.0, NAN, NAN], [NAN, NAN, NAN]])
    mask = jnp.asarray([[True, True, False], [True, False, False], [False, False, False]])
    assert losses.sequence_mean(costs, mask) == (2.0 + 5.0) / 2
    assert losses.masked_mean(costs, mask) == 9.0 / 3
    assert losses.fixed_length_mean(costs, mask, 4) == (4.0 / 4 + 5.0 / 4) / 2
    assert losses.sequence_mean(costs, mask, denom=4.0) == 7.0 / 4
    assert losses.fixed_length_mean(costs, mask, 4, denom=3.0) == 9.0 / 4 / 3


class GrpoLossTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True, with_pmap=True)
    def test_worked_example(self):
        ratios = np.asarray([[1.5, 0.5, 1.1], [1.5, 0.5, 1.0]])
        old = jnp.asarray([[-1.0, -2.0, -1.5], [-0.5, -3.0, NAN]])
        mask = jnp.asarray([[True, True, True], [True, True, False]])
        loss, metrics = self.variant(lambda *arrays: losses.grpo_loss(*arrays, clip_low=0.2, clip_high=0.3))(
            old + jnp.asarray(np.log(ratios), jnp.float32), old, jnp.asarray([1.0, -2.0]), mask
        )
        # A = 1: 1.5 is clipped to 1.3, 0.5 and 1.1 stand.    A = -2: 1.5 stands and costs 3, 0.5 is clipped to 0.8.
        costs = [-1.3, -0.5, -1.1, 3.0, 1.6]
        np.testing.assert_allclose(loss, np.mean(costs), rtol=1e-5)
        expected = {
            "policy_loss": np.mean(costs),
            "clip_ratio/low_mean": 1 / 5,
            "clip_ratio/high_mean": 1 / 5,
            "clip_ratio/region_mean": 2 / 5,
            "ratio": (1.5 + 0.5 + 1.1 + 1.5 + 0.5) / 5,
        }
        chex.assert_trees_all_close(ops.values_of(metrics), expected, rtol=1e-5)


def test_gradient_matches_central_differences(central_differences):
    logprobs, old, advantages, mask = random_batch()
    ref = old - 0.3

    def loss(logprobs):
        kl = losses.kl_estimate(logprobs, jnp.asarray(ref), "k2")
        return losses.grpo_loss(logprobs, old, advantages, mask, kl=kl, kl_coef=0.1, average=losses.sequence_mean)[0]

    def oracle(logprobs):
        ratio = np.exp(logprobs - old.astype(np.float64))
        spread = advantages[:, None]
        costs = np.maximum(-spread * ratio, -spread * np.clip(ratio, 0.8, 1.2)) + 0.05 * (logprobs - ref) ** 2
        lengths = mask.sum(axis=1)
        return sum(costs[row][mask[row]].mean() for row in range(4) if lengths[row]) / 3

    np.testing.assert_allclose(jax.jit(jax.grad(loss))(logprobs), central_differences(oracle, logprobs), atol=2e-6)


@pytest.mark.parametrize("filler", [math.nan, math.inf, 1e30])
def test_padding_has_no_say(filler):
    logprobs, old, advantages, mask = random_batch()

    @jax.jit
    def run(logprobs, old, advantages, mask, kl):
        def loss(logprobs):
            return losses.grpo_loss(logprobs, old, advantages, mask, kl=kl, kl_coef=0.1)

        return jax.value_and_grad(loss, has_aux=True)(logprobs)

    kl = np.full_like(logprobs, 0.5)
    expected = run(logprobs, old, advantages, mask, kl)
    dirty = [np.where(mask, x, filler).astype(np.float32) for x in (logprobs, old, kl)]
    lost = np.where(mask.any(axis=1), advantages, filler).astype(np.float32)
    chex.assert_trees_all_close(run(dirty[0], dirty[1], lost, mask, dirty[2]), expected, rtol=1e-6)


@pytest.mark.parametrize("average", ["token", "sequence", "fixed"])
def test_micro_batches_of_uneven_lengths_add_up_to_the_batch(average):
    arrays = random_batch()
    mask = arrays[-1]
    rows, tokens = float(mask.any(axis=1).sum()), float(mask.sum())
    averages = {
        "token": lambda costs, mask, denom=None: losses.masked_mean(costs, mask, None if denom is None else tokens),
        "sequence": losses.sequence_mean,
        "fixed": lambda costs, mask, denom=None: losses.fixed_length_mean(costs, mask, 9, denom),
    }
    one = averages[average]
    whole, _ = losses.grpo_loss(*arrays, average=one)
    parts = [
        losses.grpo_loss(*(x[part] for x in arrays), average=lambda costs, mask: one(costs, mask, rows))[0]
        for part in (slice(0, 2), slice(2, 4))
    ]
    np.testing.assert_allclose(sum(parts), whole, rtol=1e-5)


def test_an_unknown_baseline_or_scale_names_the_choices():
    rewards, valid = jnp.ones((1, 2)), jnp.ones((1, 2), bool)
    with pytest.raises(
        ValueError, match=r"baseline='rloo' is unknown; choose among \['leave_one_out', 'mean', 'none'\]"
    ):
        losses.group_advantages(rewards, valid, baseline="rloo")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="scale='std' is unknown"):
        losses.group_advantages(rewards, valid, scale="std")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("given", [{"kl": jnp.zeros((1, 2))}, {"kl_coef": 0.1}])
def test_a_kl_and_its_price_belong_together(given):
    arrays = (jnp.zeros((1, 2)), jnp.zeros((1, 2)), jnp.zeros(1), jnp.ones((1, 2), bool))
    with pytest.raises(ValueError, match="kl and kl_coef belong together"):
        losses.grpo_loss(*arrays, **given)
