import jax
import jax.numpy as jnp
import numpy as np

from jaxrlhf.ops.moments import Moments, add_values, no_moments


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
    before = Moments(jnp.float32(3.0), jnp.float32(2.0), jnp.float32(8.0))
    assert add_values(before, jnp.full(4, jnp.nan), jnp.zeros(4, bool)) == before
    assert before.std == 2.0


def test_fewer_than_two_values_have_no_deviation():
    assert no_moments().std == 0.0
    assert add_values(no_moments(), jnp.asarray([7.0]), jnp.asarray([True])).std == 0.0
