import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrlhf import losses, ops
from jaxrlhf.losses.reward import comparable_pairs

CHOSEN, REJECTED = jnp.asarray([2.0, -1.0, 0.5]), jnp.asarray([1.0, 1.0, 0.5])


def softplus(x):
    return np.log1p(np.exp(x))


def plain_kwise(rewards, ranks, valid) -> float:
    """The loss pair by pair, in Python floats."""
    prompts = []
    for row_rewards, row_ranks, there in zip(rewards, ranks, valid, strict=True):
        answers = list(zip(row_ranks[there], row_rewards[there], strict=True))
        pairs = [softplus(lose - win) for rank, win in answers for other, lose in answers if rank < other]
        if pairs:
            prompts.append(sum(pairs) / len(pairs))
    return sum(prompts) / len(prompts)


def mixed_batch():
    """Prompts with 4 to 9 answers, the ranks with ties, in a batch padded to 9."""
    rng = np.random.default_rng(4)
    rewards = rng.normal(size=(6, 9)).astype(np.float32)
    valid = np.arange(9)[None, :] < np.arange(4, 10)[:, None]
    ranks = rng.integers(1, 6, size=(6, 9))
    return rewards, ranks, valid


@jax.jit
def kwise_and_gradient(rewards, ranks, valid=None, denom=None):
    """Loss and metrics, and the gradient by the rewards."""

    def loss(rewards):
        return losses.kwise_reward_loss(rewards, ranks, valid=valid, denom=denom)

    return jax.value_and_grad(loss, has_aux=True)(rewards)


class RewardLossTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True, with_pmap=True)
    def test_pairwise_worked_example(self):
        loss, metrics = self.variant(losses.pairwise_reward_loss)(CHOSEN, REJECTED)
        # Gaps 1, -2, 0.
        expected = (softplus(-1.0) + softplus(2.0) + math.log(2.0)) / 3
        np.testing.assert_allclose(loss, expected, rtol=1e-6)
        values = {
            "loss": expected,
            "accuracy": 1.5 / 3,  # a win, a loss and a tie
            "margin": -1 / 3,
            "mean_reward": 4 / 6,
            "min_reward": -1.0,
            "max_reward": 2.0,
        }
        chex.assert_trees_all_close(ops.values_of(metrics), values, rtol=1e-6)

    @chex.variants(with_jit=True, without_jit=True, with_pmap=True)
    def test_pairwise_margin_and_centring(self):
        margin = jnp.asarray([1.0, 0.0, 2.0])
        loss, metrics = self.variant(losses.pairwise_reward_loss)(CHOSEN, REJECTED, margin=margin, center_coef=0.01)
        # Gaps less margins 0, -2, -2; sums 3, 0, 1.
        expected = (math.log(2.0) + 2 * softplus(2.0)) / 3 + 0.01 * (9 + 0 + 1) / 3
        np.testing.assert_allclose(loss, expected, rtol=1e-6)
        np.testing.assert_allclose(metrics["margin"].value, -1 / 3, rtol=1e-6)

    @chex.variants(with_jit=True, without_jit=True, with_pmap=True)
    def test_kwise_worked_example(self):
        rewards = jnp.asarray([[0.0, 2.0, 1.0], [1.0, -1.0, jnp.nan]])
        ranks, valid = jnp.asarray([[3, 1, 2], [2, 1, 1]]), jnp.asarray([[True, True, True], [True, True, False]])
        loss, metrics = self.variant(losses.kwise_reward_loss)(rewards, ranks, valid=valid)
        # Prompt 1: gaps 2, 1, 1 in the order of the ranks. Prompt 2: one pair, gap -2, as heavy as the three above.
        first, second = (softplus(-2.0) + 2 * softplus(-1.0)) / 3, softplus(2.0)
        np.testing.assert_allclose(loss, (first + second) / 2, rtol=1e-6)
        values = {
            "loss": (first + second) / 2,
            "accuracy": 3 / 4,
            "margin": (2 + 1 + 1 - 2) / 4,
            "mean_reward": 3 / 5,
            "min_reward": -1.0,
            "max_reward": 2.0,
        }
        chex.assert_trees_all_close(ops.values_of(metrics), values, rtol=1e-6)


def test_pairwise_gradient_matches_central_differences(central_differences):
    margin = np.asarray([1.0, 0.0, 2.0])

    def oracle(scores):
        return (softplus(margin - scores[0] + scores[1]) + 0.01 * (scores[0] + scores[1]) ** 2).mean()

    def loss(scores):
        margins = jnp.asarray(margin, jnp.float32)
        return losses.pairwise_reward_loss(scores[0], scores[1], margin=margins, center_coef=0.01)[0]

    scores = jnp.stack([CHOSEN, REJECTED])
    np.testing.assert_allclose(jax.jit(jax.grad(loss))(scores), central_differences(oracle, scores), atol=1e-6)


def test_kwise_loss_and_gradient_with_4_to_9_answers_match_a_plain_loop(central_differences):
    rewards, ranks, valid = mixed_batch()
    (loss, _), gradient = kwise_and_gradient(rewards, ranks, valid)
    np.testing.assert_allclose(loss, plain_kwise(rewards, ranks, valid), rtol=1e-6)
    truth = central_differences(lambda x: plain_kwise(x, ranks, valid), rewards)
    np.testing.assert_allclose(gradient, truth, atol=1e-6)


def test_kwise_prompts_weigh_equally_whatever_their_k():
    rewards, ranks, valid = mixed_batch()
    (whole, _), _ = kwise_and_gradient(rewards, ranks, valid)
    rows = [kwise_and_gradient(rewards[i, None], ranks[i, None], valid[i, None])[0][0] for i in range(6)]
    np.testing.assert_allclose(whole, np.mean(rows), rtol=1e-6)


def test_kwise_of_two_answers_is_pairwise():
    valid = jnp.asarray([True, True, False])

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def pairwise(scores):
        return losses.pairwise_reward_loss(scores[:, 0], scores[:, 1], valid=valid)

    scores, ranks = jnp.stack([CHOSEN, REJECTED], axis=1), jnp.asarray([[1, 2]] * 3)
    kwise = kwise_and_gradient(scores, ranks, jnp.stack([valid, valid], axis=1))
    chex.assert_trees_all_close(kwise, pairwise(scores), rtol=1e-6)


def test_kwise_drops_tied_pairs_and_counts_the_others():
    rewards, ranks = jnp.asarray([[3.0, 1.0, 5.0]]), jnp.asarray([[1, 2, 2]])
    (loss, metrics), _ = kwise_and_gradient(rewards, ranks)
    np.testing.assert_allclose(loss, (softplus(-2.0) + softplus(2.0)) / 2, rtol=1e-6)
    assert metrics["accuracy"].weight == 2.0


def test_kwise_prompt_of_ties_alone_is_counted_nowhere():
    rewards, ranks = jnp.asarray([[1.0, 0.0, 2.0], [4.0, 5.0, 6.0]]), jnp.asarray([[1, 2, 3], [1, 1, 1]])
    (loss, metrics), gradient = kwise_and_gradient(rewards, ranks)
    (alone, _), alone_gradient = kwise_and_gradient(rewards[:1], ranks[:1])
    np.testing.assert_allclose(loss, alone, rtol=1e-6)
    np.testing.assert_allclose(gradient, [*alone_gradient, [0, 0, 0]], rtol=1e-6)
    assert (metrics["loss"].weight, metrics["accuracy"].weight) == (1.0, 3.0)


def test_kwise_batch_of_ties_alone_is_zero():
    (loss, _), gradient = kwise_and_gradient(jnp.asarray([[1.0, 2.0]]), jnp.asarray([[1, 1]]))
    assert loss == 0.0
    assert not jnp.any(gradient)


def test_kwise_does_not_depend_on_the_order_of_the_answers():
    rewards, ranks, valid = mixed_batch()
    order = np.random.default_rng(0).permuted(np.tile(np.arange(9), (6, 1)), axis=1)
    (loss, _), gradient = kwise_and_gradient(rewards, ranks, valid)
    moved = [np.take_along_axis(x, order, axis=1) for x in (rewards, ranks, valid)]
    (moved_loss, _), moved_gradient = kwise_and_gradient(*moved)
    np.testing.assert_allclose(moved_loss, loss, rtol=1e-6)
    np.testing.assert_allclose(moved_gradient, np.take_along_axis(gradient, order, axis=1), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("filler", [math.nan, math.inf, -1e30])
def test_kwise_padding_has_no_say_in_loss_gradient_or_metrics(filler: float):
    rewards, ranks, valid = mixed_batch()
    out, gradient = kwise_and_gradient(rewards, ranks, valid)
    more = ((0, 1), (0, 2))
    dirty = np.pad(np.where(valid, rewards, filler), more, constant_values=filler)
    other_out, other_gradient = kwise_and_gradient(dirty, np.pad(ranks, more), np.pad(valid, more))
    chex.assert_trees_all_close(other_out, out, rtol=1e-6)
    np.testing.assert_allclose(other_gradient, np.pad(gradient, more), rtol=1e-6, atol=1e-7)
    assert not np.any(other_gradient[~np.pad(valid, more)])


@pytest.mark.parametrize("filler", [math.nan, math.inf])
def test_pairwise_rows_that_do_not_count_have_no_say(filler: float):
    valid = jnp.asarray([True, False, True])

    @jax.jit
    def run(chosen, rejected, margin, valid=None):
        def loss(chosen, rejected):
            return losses.pairwise_reward_loss(chosen, rejected, margin=margin, center_coef=0.1, valid=valid)

        return jax.value_and_grad(loss, (0, 1), has_aux=True)(chosen, rejected)

    dirty = [jnp.where(valid, x, filler) for x in (CHOSEN, REJECTED, jnp.ones(3))]
    out, gradients = run(*dirty, valid)
    kept_out, kept_gradients = run(CHOSEN[valid], REJECTED[valid], jnp.ones(2))
    chex.assert_trees_all_close(out, kept_out, rtol=1e-6)
    chex.assert_trees_all_close(jax.tree.map(lambda x: x[valid], gradients), kept_gradients, rtol=1e-6)
    assert all(gradient[1] == 0.0 for gradient in gradients)


def test_kwise_micro_batches_add_up_to_the_batch():
    rewards, ranks, valid = mixed_batch()
    ranks[0] = 1  # all ties: five prompts count
    parts = [kwise_and_gradient(rewards[i : i + 2], ranks[i : i + 2], valid[i : i + 2], 5) for i in (0, 2, 4)]
    (whole, _), gradient = kwise_and_gradient(rewards, ranks, valid)
    np.testing.assert_allclose(sum(loss for (loss, _), _ in parts), whole, rtol=1e-6)
    np.testing.assert_allclose(np.concatenate([part for _, part in parts]), gradient, rtol=1e-5)


def test_pairwise_micro_batches_add_up_to_the_batch():
    def loss(chosen, rejected, denom=None):
        return losses.pairwise_reward_loss(chosen, rejected, center_coef=0.1, denom=denom)[0]

    run = jax.jit(jax.value_and_grad(loss))
    parts = [run(CHOSEN[i : i + 1], REJECTED[i : i + 1], 3) for i in range(3)]
    values, gradients = zip(*parts, strict=True)
    chex.assert_trees_all_close((sum(values), jnp.concatenate(gradients)), run(CHOSEN, REJECTED), rtol=1e-5)


def test_bfloat16_scores_are_subtracted_in_float32():
    chosen, rejected = jnp.asarray([256.0], jnp.bfloat16), jnp.asarray([0.5], jnp.bfloat16)
    _, metrics = jax.jit(losses.pairwise_reward_loss)(chosen, rejected)
    assert metrics["margin"].value == 255.5  # not a bfloat16
    (_, metrics), _ = kwise_and_gradient(jnp.stack([chosen, rejected], axis=1), jnp.asarray([[1, 2]]))
    assert metrics["margin"].value == 255.5


def test_a_new_centring_weight_does_not_retrace():
    chex.clear_trace_counter()
    run = jax.jit(chex.assert_max_traces(losses.pairwise_reward_loss, n=1))
    free, centred = (run(CHOSEN, REJECTED, center_coef=coef)[0] for coef in (0.0, 0.3))
    np.testing.assert_allclose(centred - free, 0.3 * 10 / 3, rtol=1e-6)


def test_comparable_pairs():
    pairs = comparable_pairs(jnp.asarray([[2, 1, 2, 1]]), jnp.asarray([[True, True, True, False]]))
    expected = np.zeros((1, 4, 4), bool)
    expected[0, 1, [0, 2]] = True
    np.testing.assert_array_equal(pairs, expected)


def test_shapes_that_would_broadcast_are_an_error():
    with pytest.raises(AssertionError):
        losses.pairwise_reward_loss(CHOSEN, REJECTED[:1])
    with pytest.raises(AssertionError):
        losses.kwise_reward_loss(jnp.ones((2, 3)), jnp.ones((2, 1), int))
