import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrlhf import losses, ops

# Log-ratios to the reference: chosen 2, 0, 1; rejected -1, 1, 1.
CHOSEN, REF_CHOSEN = jnp.asarray([-10.0, -20.0, -7.0]), jnp.asarray([-12.0, -20.0, -8.0])
REJECTED, REF_REJECTED = jnp.asarray([-14.0, -30.0, -5.0]), jnp.asarray([-13.0, -31.0, -6.0])
SUMS = (CHOSEN, REJECTED, REF_CHOSEN, REF_REJECTED)


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


class DpoLossTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True, with_pmap=True)
    def test_worked_example(self):
        loss, metrics = self.variant(losses.dpo_loss)(*SUMS, beta=0.5)
        # Implicit rewards: chosen 1, 0, 0.5; rejected -0.5, 0.5, 0.5; margins 1.5, -0.5, 0.
        np.testing.assert_allclose(loss, (softplus(-1.5) + softplus(0.5) + math.log(2.0)) / 3, rtol=1e-6)
        expected = {
            "loss": (softplus(-1.5) + softplus(0.5) + math.log(2.0)) / 3,
            "rewards/chosen": 0.5,
            "rewards/rejected": 0.5 / 3,
            "rewards/margins": 1 / 3,
            "rewards/accuracies": 1 / 3,  # a tie is no win
            "logps/chosen": -37 / 3,
            "logps/rejected": -49 / 3,
        }
        chex.assert_trees_all_close(ops.values_of(metrics), expected, rtol=1e-5)

    @chex.variants(with_jit=True, without_jit=True, with_pmap=True)
    def test_at_the_reference_the_loss_is_ln_2_and_nothing_wins(self):
        loss, metrics = self.variant(losses.dpo_loss)(CHOSEN, REJECTED, CHOSEN, REJECTED, beta=0.1)
        np.testing.assert_allclose(loss, math.log(2.0), rtol=1e-6)
        assert metrics["rewards/accuracies"].value == 0.0
        assert metrics["rewards/margins"].value == 0.0


def test_gradient_matches_central_differences(central_differences):
    def oracle(sums):
        margin = 0.5 * ((sums[0] - np.asarray(REF_CHOSEN)) - (sums[1] - np.asarray(REF_REJECTED)))
        return np.log1p(np.exp(-margin)).mean()

    run = jax.jit(jax.grad(lambda *sums: losses.dpo_loss(*sums, beta=0.5)[0], (0, 1, 2, 3)))
    by_chosen, by_rejected, *by_reference = run(*SUMS)
    truth = central_differences(oracle, np.stack([CHOSEN, REJECTED]))
    np.testing.assert_allclose(jnp.stack([by_chosen, by_rejected]), truth, atol=1e-6)
    assert not any(jnp.any(gradient) for gradient in by_reference)


def test_rows_that_do_not_count_have_no_say():
    valid = jnp.asarray([True, False, True])
    dirty = [jnp.where(valid, x, jnp.nan) for x in SUMS]
    kept = [x[valid] for x in SUMS]

    @jax.jit
    def run(sums, valid=None):
        def loss(chosen, rejected):
            return losses.dpo_loss(chosen, rejected, *sums[2:], beta=0.5, valid=valid)

        return jax.value_and_grad(loss, (0, 1), has_aux=True)(*sums[:2])

    out, gradients = run(dirty, valid)
    kept_out, kept_gradients = run(kept)
    chex.assert_trees_all_close(out, kept_out, rtol=1e-6)
    chex.assert_trees_all_close(jax.tree.map(lambda x: x[valid], gradients), kept_gradients, rtol=1e-6)
    assert all(gradient[1] == 0.0 for gradient in gradients)


def test_micro_batches_add_up_to_the_batch():
    valid = jnp.asarray([True, False, True, True, True, True])
    sums = [jnp.concatenate([x, x[::-1]]) for x in SUMS]

    def loss(sums, valid, denom=None):
        return losses.dpo_loss(*sums, beta=0.5, valid=valid, denom=denom)[0]

    run = jax.jit(jax.value_and_grad(loss))
    parts = [run([x[rows] for x in sums], valid[rows], 5) for rows in (slice(0, 3), slice(3, 6))]
    values, gradients = zip(*parts, strict=True)
    joined = [jnp.concatenate(halves) for halves in zip(*gradients, strict=True)]
    chex.assert_trees_all_close((sum(values), joined), run(sums, valid), rtol=1e-5)


def test_margins_of_thousands_stay_finite():
    run = jax.jit(jax.value_and_grad(lambda x: losses.dpo_loss(x, -x, 0 * x, 0 * x, beta=1.0)[0]))
    loss, gradient = run(jnp.asarray([-2e3, 2e3]))
    np.testing.assert_allclose(loss, 4e3 / 2, rtol=1e-6)
    np.testing.assert_allclose(gradient, [-1.0, 0.0], atol=1e-6)


def test_bfloat16_sums_are_subtracted_in_float32():
    def half(x: float) -> jax.Array:
        return jnp.asarray([x], jnp.bfloat16)

    _, metrics = losses.dpo_loss(half(-256.0), half(-1.5), half(-0.5), half(-1.5), beta=1.0)
    assert metrics["rewards/chosen"].value == -255.5  # not a bfloat16


def test_a_new_beta_does_not_retrace():
    chex.clear_trace_counter()
    run = jax.jit(chex.assert_max_traces(losses.dpo_loss, n=1))
    margins = [run(*SUMS, beta=beta)[1]["rewards/margins"].value for beta in (0.1, 0.5)]
    np.testing.assert_allclose(margins, [0.2 / 3, 1 / 3], rtol=1e-5)


def test_shapes_that_would_broadcast_are_an_error():
    with pytest.raises(AssertionError):
        losses.dpo_loss(CHOSEN, REJECTED[:1], REF_CHOSEN, REF_REJECTED, beta=0.1)
