import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrlhf.kernels.statistics import Running, absorb, absorb_kl, log_softmax, nothing_seen
from jaxrlhf.ops import entropy_from_logits, kl_from_logits

ROWS = 3


def random_logits(seed: int, words: int = 12) -> jax.Array:
    return jnp.asarray(3 * np.random.default_rng(seed).normal(size=(ROWS, words)), jnp.float32)


@functools.partial(jax.jit, static_argnums=1)
def walk(logits: tuple[jax.Array, jax.Array], edges: tuple[int, ...]) -> tuple[Running, Running, jax.Array]:
    """Statistics of policy and reference, and the KL, of logits that come cut at `edges`; the target is word 5."""
    seen = (nothing_seen(ROWS, entropy=True), nothing_seen(ROWS, entropy=True))
    kl = jnp.zeros(ROWS)
    for first, last in zip((0, *edges), (*edges, logits[0].shape[1]), strict=True):
        parts = (logits[0][:, first:last], logits[1][:, first:last])
        fresh = jnp.ones((1, last - first), bool)
        hit = jnp.broadcast_to(jnp.arange(first, last) == 5, parts[0].shape)
        now = (absorb(seen[0], parts[0], fresh, hit), absorb(seen[1], parts[1], fresh, hit))
        kl, seen = absorb_kl(kl, seen, now, parts, fresh), now
    return *seen, kl


@pytest.mark.parametrize("edges", [(), (6,), (1, 2, 11)], ids=str)
def test_statistics_do_not_depend_on_where_blocks_end(edges: tuple[int, ...]):
    logits = random_logits(0), random_logits(1)
    policy, _, kl = walk(logits, edges)
    np.testing.assert_array_equal(policy.max, jnp.max(logits[0], axis=-1))
    np.testing.assert_array_equal(policy.target, logits[0][:, 5])
    np.testing.assert_allclose(kl, kl_from_logits(*logits), rtol=2e-6)
    entropy = jnp.log(policy.sum) - policy.weighted / policy.sum
    np.testing.assert_allclose(entropy, entropy_from_logits(logits[0]), rtol=1e-5)


def test_columns_that_are_not_fresh_leave_no_trace():
    z, z_ref = random_logits(0), random_logits(1)
    fresh = (jnp.arange(12) < 7)[None, :]
    seen = (nothing_seen(ROWS, entropy=True), nothing_seen(ROWS, entropy=True))
    now = tuple(absorb(old, x, fresh, jnp.zeros(x.shape, bool)) for old, x in zip(seen, (z, z_ref), strict=True))
    kl = absorb_kl(jnp.zeros(ROWS), seen, now, (z, z_ref), fresh)
    np.testing.assert_allclose(kl, kl_from_logits(z[:, :7], z_ref[:, :7]), rtol=2e-6)
    np.testing.assert_array_equal(now[0].max, jnp.max(z[:, :7], axis=-1))


@pytest.mark.parametrize("edges", [(6,), (3, 8)], ids=str)
def test_blocks_that_are_ruled_out_add_nothing(edges: tuple[int, ...]):
    ruled_out = (jnp.arange(12) < 6)[None, :]  # the first block at least
    kept = random_logits(0), random_logits(1)
    both = tuple(jnp.where(ruled_out, -jnp.inf, z) for z in kept)
    expected = kl_from_logits(kept[0][:, 6:], kept[1][:, 6:])
    np.testing.assert_allclose(walk(both, edges)[2], expected, rtol=2e-6)
    # The policy alone: its KL to a reference that has these words as well.
    np.testing.assert_allclose(walk((both[0], kept[1]), edges)[2], kl_from_logits(both[0], kept[1]), rtol=2e-6)
    assert jnp.all(walk((kept[0], both[1]), edges)[2] == jnp.inf)


def test_log_softmax_keeps_its_digits_where_logits_are_large():
    logits = jnp.round(random_logits(0) * 64) / 64  # 2048 can be added without rounding
    expected = log_softmax(logits, walk((logits, logits), (4,))[0])
    moved = log_softmax(logits + 2048, walk((logits + 2048, logits), (4,))[0])
    np.testing.assert_array_equal(moved, expected)
    np.testing.assert_allclose(jnp.sum(jnp.exp(moved), axis=-1), np.ones(ROWS), rtol=1e-6)
