import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrlhf.ops.moments import RunningMoments, add_values, no_moments


def test_batches_add_up_to_the_moments_of_all_their_values():
    rng = np.random.default_rng(0)
    values, mask = rng.normal(1e3, 2.0, (5, 8)).astype(np.float32), rng.random((5, 8)) < 0.6
    moments = no_moments()
    for row, kept in zip(values, mask, strict=True):
        moments = jax.jit(add_values)(moments, jnp.where(kept, row, jnp.nan), jnp.asarray(kept))
    seen = values[mask].astype(np.float64)
    assert moments.number == len(seen)
    np.testing.assert_allclose(moments.mean, seen.mean(), rtol=1e-6)
    np.testing.assert_allclose(moments.std, seen.std(ddof=1), rtol=1e-3)


def test_nothing_new_changes_nothing():
    before = RunningMoments(jnp.float32(3.0), jnp.float32(2.0), jnp.float32(8.0))
    assert add_values(before, jnp.full(4, jnp.nan), jnp.zeros(4, bool)) == before
    assert before.std == 2.0


def test_fewer_than_two_values_have_no_deviation():
    assert no_moments().std == 0.0
    assert add_values(no_moments(), jnp.asarray([7.0]), jnp.asarray([True])).std == 0.0


@pytest.mark.parametrize("value", [0.1, -0.7, 1.7])
@pytest.mark.parametrize("count", [7, 64, 512])
def test_equal_values_have_no_deviation_at_all(value: float, count: int):
    moments = no_moments()
    for _ in range(3):
        moments = jax.jit(add_values)(moments, jnp.full(count, value), jnp.ones(count, bool))
    assert moments.std == 0.0 and moments.mean == jnp.float32(value)
