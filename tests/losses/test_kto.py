import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrlhf import losses, ops

# Log-ratios to the reference 3, -1, 2, 5; the first three answers are good.
LOGPS, REF_LOGPS = jnp.asarray([-10.0, -20.0, -7.0, -5.0]), jnp.asarray([-13.0, -19.0, -9.0, -10.0])
DESIRABLE = jnp.asarray([True, True, True, False])
KL = jnp.float32(1.0)
ROWS = (LOGPS, REF_LOGPS, DESIRABLE)
OPTIONS = {"beta": 0.5, "desirable_weight": 1.0, "undesirable_weight": 3.0}


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


# 0.5 * (3 - 1) = 1, 0.5 * (-1 - 1) = -1, 0.5 * (2 - 1) = 0.5, and for the bad answer 0.5 * (1 - 5) = -2.
PER_ROW = [1 - sigmoid(1.0), 1 - sigmoid(-1.0), 1 - sigmoid(0.5), 3 * (1 - sigmoid(-2.0))]


class KtoLossTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True, with_pmap=True)
    def test_worked_example(self):
        def kto_loss(*rows):
            return losses.kto_loss(*rows, **OPTIONS)

        loss, metrics = self.variant(kto_loss)(*ROWS, KL)
        np.testing.assert_allclose(loss, sum(PER_ROW) / 4, rtol=1e-6)
        expected = {
            "loss": sum(PER_ROW) / 4,
            "kl": 1.0,
            "rewards/chosen": 0.5 * 4 / 3,
            "rewards/rejected": 2.5,
            "rewards/margins": 2 / 3 - 2.5,  # of the means: there are three good answers and one bad
            "logps/chosen": -37 / 3,
            "logps/rejected": -5.0,
        }
        chex.assert_trees_all_close(ops.values_of(metrics), expected, rtol=1e-6)

    @chex.variants(with_jit=True, without_jit=True, with_pmap=True)
    def test_the_kl_is_the_mean_log_ratio_of_the_rows_that_count(self):
        np.testing.assert_allclose(self.variant(losses.kto_kl)(LOGPS, REF_LOGPS), 9 / 4, rtol=1e-6)
        valid = jnp.asarray([True, True, False, False])
        dirty = jnp.where(valid, LOGPS, jnp.nan)
        np.testing.assert_allclose(self.variant(losses.kto_kl)(dirty, REF_LOGPS, valid), 1.0, rtol=1e-6)


def test_the_kl_is_never_negative_and_zero_where_nothing_counts():
    assert losses.kto_kl(REF_LOGPS, LOGPS) == 0.0
    assert losses.kto_kl(LOGPS, REF_LOGPS, jnp.zeros(4, bool)) == 0.0


def test_no_gradient_flows_through_the_kl():
    def loss(logps, ref_logps, kl):
        return losses.kto_loss(logps, ref_logps, DESIRABLE, kl, **OPTIONS)[0]

    _, by_reference, by_kl = jax.grad(loss, (0, 1, 2))(LOGPS, REF_LOGPS, KL)
    assert not jnp.any(by_reference) and by_kl == 0.0
    assert not any(jnp.any(gradient) for gradient in jax.grad(losses.kto_kl, (0, 1))(LOGPS, REF_LOGPS))


def test_gradient_matches_central_differences(central_differences):
    def oracle(logps):
        gain = 0.5 * (logps - np.asarray(REF_LOGPS) - 1.0) * np.asarray([1, 1, 1, -1])
        return (np.asarray([1, 1, 1, 3]) * (1 - 1 / (1 + np.exp(-gain)))).mean()

    gradient = jax.grad(lambda logps: losses.kto_loss(logps, *ROWS[1:], KL, **OPTIONS)[0])(LOGPS)
    np.testing.assert_allclose(gradient, central_differences(oracle, np.asarray(LOGPS)), atol=1e-6)
    assert jnp.all(gradient[:3] < 0) and gradient[3] > 0


def test_at_the_reference_a_row_costs_half_its_weight():
    loss, metrics = losses.kto_loss(LOGPS, LOGPS, DESIRABLE, 0.0, **OPTIONS)
    np.testing.assert_allclose(loss, (0.5 + 0.5 + 0.5 + 1.5) / 4, rtol=1e-7)
    assert metrics["rewards/margins"].value == metrics["rewards/chosen"].value == 0.0


def test_rows_that_do_not_count_have_no_say():
    valid = jnp.asarray([True, False, True, True])

    @jax.jit
    def run(logps, ref_logps, desirable, valid=None):
        def loss(logps):
            return losses.kto_loss(logps, ref_logps, desirable, KL, valid=valid, **OPTIONS)

        return jax.value_and_grad(loss, has_aux=True)(logps)

    out, gradient = run(jnp.where(valid, LOGPS, jnp.nan), jnp.where(valid, REF_LOGPS, jnp.nan), DESIRABLE, valid)
    kept_out, kept_gradient = run(*(x[valid] for x in ROWS))
    chex.assert_trees_all_close(out, kept_out, rtol=1e-6)
    chex.assert_trees_all_close(gradient[valid], kept_gradient, rtol=1e-6)
    assert gradient[1] == 0.0


def test_micro_batches_add_up_to_the_batch():
    valid = jnp.asarray([True, True, False, True])

    def loss(rows, valid, denom=None):
        return losses.kto_loss(*rows, KL, valid=valid, denom=denom, **OPTIONS)

    whole, whole_metrics = loss(ROWS, valid)
    parts = [loss([x[half] for x in ROWS], valid[half], 3) for half in (slice(0, 2), slice(2, 4))]
    np.testing.assert_allclose(sum(part for part, _ in parts), whole, rtol=1e-6)
    # The first part has no bad answer, the second no good one that counts: neither has a margin of its own.
    assert all(jnp.isnan(metrics["rewards/margins"].value) for _, metrics in parts)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(metrics for _, metrics in parts))
    merged = ops.values_of(ops.reduce_stacked(stacked))
    chex.assert_trees_all_close(merged, ops.values_of(whole_metrics), rtol=1e-6)
    assert math.isfinite(merged["rewards/margins"])


def test_weights_scale_the_rows_of_their_label():
    def rows(**weights):
        row = [losses.kto_loss(*(x[i : i + 1] for x in ROWS), KL, **{**OPTIONS, **weights})[0] for i in range(4)]
        return np.asarray(row)

    np.testing.assert_allclose(rows(), PER_ROW, rtol=1e-6)
    np.testing.assert_allclose(rows(desirable_weight=2.0) / rows(), [2, 2, 2, 1], rtol=1e-6)
    np.testing.assert_allclose(rows(undesirable_weight=1.5) / rows(), [1, 1, 1, 0.5], rtol=1e-6)


def test_log_ratios_of_thousands_stay_finite():
    def loss(logps):
        return losses.kto_loss(logps, 0 * logps, jnp.asarray([True, True, False, False]), 0.0, **OPTIONS)[0]

    value, gradient = jax.value_and_grad(loss)(jnp.asarray([-2e3, 2e3, -2e3, 2e3]))
    np.testing.assert_allclose(value, (1 + 0 + 0 + 3) / 4, rtol=1e-6)
    np.testing.assert_allclose(gradient, 0.0, atol=1e-6)


def test_bfloat16_sums_are_subtracted_in_float32():
    logps, ref_logps = (jnp.asarray([x], jnp.bfloat16) for x in (-256.0, -0.5))
    assert losses.kto_kl(ref_logps, logps) == 255.5  # not a bfloat16
    _, metrics = losses.kto_loss(logps, ref_logps, DESIRABLE[:1], 0.0, **{**OPTIONS, "beta": 1.0})
    assert metrics["rewards/chosen"].value == -255.5


def test_new_options_do_not_retrace():
    chex.clear_trace_counter()
    run = jax.jit(chex.assert_max_traces(losses.kto_loss, n=1))
    values = [run(*ROWS, kl, **{**OPTIONS, "beta": beta})[1]["rewards/rejected"].value for kl, beta in [(0, 1), (1, 2)]]
    np.testing.assert_allclose(values, [5.0, 10.0])


@pytest.mark.parametrize(
    "rows", [(LOGPS, REF_LOGPS[:1], DESIRABLE, KL), (LOGPS, REF_LOGPS, DESIRABLE.astype(int), KL), (*ROWS, LOGPS)]
)
def test_what_would_broadcast_is_an_error(rows):
    with pytest.raises(AssertionError):
        losses.kto_loss(*rows, **OPTIONS)
