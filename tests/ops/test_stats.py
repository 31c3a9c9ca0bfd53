import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxrlhf import ops
from jaxrlhf.ops.stats import is_metric, merged_values

VALUES = jnp.asarray([[1.0, 2.0, jnp.nan], [6.0, jnp.inf, -jnp.inf]])
MASK = jnp.asarray([[True, True, False], [True, False, False]])


class StatsTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True, with_pmap=True)
    def test_mean_max_and_min_read_the_true_entries(self):
        def measure(values, mask):
            return {"mean": ops.mean_of(values, mask), "max": ops.max_of(values, mask), "min": ops.min_of(values, mask)}

        metrics = self.variant(measure)(VALUES, MASK)
        assert (metrics["mean"].sum, metrics["mean"].weight) == (9.0, 3.0)
        assert ops.values_of(metrics) == {"mean": 3.0, "max": 6.0, "min": 1.0}


def test_mean_without_a_mask_counts_everything():
    mean = ops.mean_of(jnp.asarray([[True, False], [True, True]]))
    assert (mean.sum, mean.weight, mean.value) == (3.0, 4.0, 0.75)


def test_nothing_counted_is_nan_or_the_identity_of_the_merge():
    nothing = jnp.zeros_like(MASK)
    assert jnp.isnan(ops.mean_of(VALUES, nothing).value)
    assert ops.max_of(VALUES, nothing).value == -jnp.inf
    assert ops.min_of(VALUES, nothing).value == jnp.inf


def test_parts_are_summed_in_float32():
    mean = ops.mean_of(jnp.ones(1000, jnp.bfloat16))
    chex.assert_type([mean.sum, mean.weight], jnp.float32)
    assert mean.value == 1.0


def test_parts_stacked_by_scan_merge_to_the_whole():
    rows = jnp.asarray([[1.0, 2.0, 3.0], [10.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    mask = jnp.asarray([[True, True, True], [True, False, False], [False, False, False]])

    def measure(_, row):
        values, kept = row
        count = ops.Sum(jnp.sum(kept, dtype=jnp.float32))
        part = {"mean": ops.mean_of(values, kept), "max": ops.max_of(values, kept), "min": ops.min_of(values, kept)}
        return None, {**part, "nested": {"count": count}}

    _, stacked = jax.lax.scan(measure, None, (rows, mask))
    merged = ops.values_of(ops.reduce_stacked(stacked))
    # 16 over 4 tokens; the mean of the rows' means would be 6.
    assert merged == {"mean": 4.0, "max": 10.0, "min": 1.0, "nested": {"count": 4.0}}


def test_a_difference_is_of_the_merged_means():
    def part(values, good):
        return {"gap": ops.Difference(ops.mean_of(values, good), ops.mean_of(values, ~good))}

    values, good = jnp.asarray([[1.0, 2.0], [6.0, 7.0]]), jnp.asarray([[True, True], [True, False]])
    parts = [part(values[row], good[row]) for row in (0, 1)]
    assert jnp.isnan(parts[0]["gap"].value)  # it has nothing to subtract
    assert merged_values(parts) == {"gap": 3.0 - 7.0}
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *parts)
    assert ops.values_of(ops.reduce_stacked(stacked)) == {"gap": -4.0}


def test_metrics_are_leaves_of_their_trees():
    one = jnp.ones(())
    mean = ops.Mean(one, one)
    metrics = (mean, ops.Difference(mean, mean), ops.Max(one), ops.Min(one), ops.Sum(one))
    assert all(is_metric(metric) for metric in metrics)
    assert not is_metric(one) and not is_metric({"loss": ops.Sum(one)})
    np.testing.assert_array_equal(ops.values_of([ops.Sum(one)]), [1.0])


def test_steps_merge_on_the_host_as_their_parts_would():
    def step(total: float, weight: float, most: float, count: float):
        total, weight, most, count = map(jnp.float32, (total, weight, most, count))
        return {"mean": ops.Mean(total, weight), "most": ops.Max(most), "n": ops.Sum(count)}

    assert merged_values([step(6, 3, 2, 1), step(10, 1, 7, 4)]) == {"mean": 4.0, "most": 7.0, "n": 5.0}
    nothing = merged_values([{"mean": ops.Mean(jnp.float32(0.0), jnp.float32(0.0))}])
    assert np.isnan(nothing["mean"])
    large = merged_values([{"n": ops.Sum(jnp.float32(2.0**24))}, {"n": ops.Sum(jnp.float32(1.0))}])
    assert large["n"] == 2**24 + 1  # float32 would lose the one
