import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrlhf.kernels.statistics import Stats, add_stats, log_softmax, merge_stats, no_stats, tile_stats
from jaxrlhf.ops import entropy_from_logits, kl_from_logits

ROWS = 3


def random_logits(seed: int, words: int = 12) -> jax.Array:
    return jnp.asarray(3 * np.random.default_rng(seed).normal(size=(ROWS, words)), jnp.float32)


def part_stats(z: jax.Array, z_ref: jax.Array, first: int, fresh: jax.Array | None = None) -> Stats:
    """Statistics of logits whose first column is word `first`; the target is word 5."""
    words = jnp.arange(first, first + z.shape[1])[None, :]
    fresh = jnp.ones(words.shape, bool) if fresh is None else fresh
    hit = jnp.broadcast_to(fresh & (words == 5), z.shape)
    return tile_stats(z, z_ref, fresh=fresh, hit=hit, entropy=True, kl=True)


def parts_of(logits: tuple[jax.Array, jax.Array], edges: tuple[int, ...]) -> list[Stats]:
    """Statistics of logits that come cut at `edges`."""
    spans = zip((0, *edges), (*edges, logits[0].shape[1]), strict=True)
    return [part_stats(*(z[:, first:last] for z in logits), first) for first, last in spans]


@functools.partial(jax.jit, static_argnums=1)
def walk(logits: tuple[jax.Array, jax.Array], edges: tuple[int, ...]) -> Stats:
    return functools.reduce(add_stats, parts_of(logits, edges), no_stats(ROWS, entropy=True, reference=True, kl=True))


def stacked(parts: list[Stats]) -> Stats:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *parts)


def assert_close(actual: Stats, expected: Stats, rtol: float = 2e-6) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-6), actual, expected)


@pytest.mark.parametrize("edges", [(), (6,), (1, 2, 11)], ids=str)
def test_statistics_do_not_depend_on_where_tiles_end(edges: tuple[int, ...]):
    logits = random_logits(0), random_logits(1)
    stats = walk(logits, edges)
    np.testing.assert_array_equal(stats.policy.max, jnp.max(logits[0], axis=-1))
    np.testing.assert_array_equal(stats.policy.target, logits[0][:, 5])
    np.testing.assert_allclose(stats.kl, kl_from_logits(*logits), rtol=2e-6)
    entropy = jnp.log(stats.policy.sum) - stats.policy.weighted / stats.policy.sum
    np.testing.assert_allclose(entropy, entropy_from_logits(logits[0]), rtol=1e-5)


def test_combining_is_associative_and_commutative():
    a, b, c = parts_of((random_logits(0), random_logits(1)), (3, 8))
    expected = add_stats(add_stats(a, b), c)
    assert_close(add_stats(a, add_stats(b, c)), expected)
    assert_close(add_stats(c, add_stats(a, b)), expected)
    assert_close(merge_stats(stacked([b, c, a])), expected)


def test_nothing_changes_nothing():
    (only,) = parts_of((random_logits(0), random_logits(1)), ())
    nothing = no_stats(ROWS, entropy=True, reference=True, kl=True)
    jax.tree.map(np.testing.assert_array_equal, add_stats(nothing, only), add_stats(only, nothing))
    assert_close(add_stats(nothing, only), only, rtol=1e-7)


def test_columns_that_are_not_fresh_leave_no_trace():
    logits = random_logits(0), random_logits(1)
    fresh = (jnp.arange(12) < 7)[None, :]
    dirty = tuple(jnp.where(fresh, z, jnp.nan) for z in logits)
    (expected,) = parts_of((logits[0][:, :7], logits[1][:, :7]), ())
    assert_close(part_stats(*dirty, 0, fresh), expected)


@pytest.mark.parametrize("edges", [(6,), (3, 8)], ids=str)
def test_tiles_that_are_ruled_out_add_nothing(edges: tuple[int, ...]):
    ruled_out = (jnp.arange(12) < 6)[None, :]  # the first tile at least
    kept = random_logits(0), random_logits(1)
    both = tuple(jnp.where(ruled_out, -jnp.inf, z) for z in kept)
    expected = kl_from_logits(kept[0][:, 6:], kept[1][:, 6:])
    np.testing.assert_allclose(walk(both, edges).kl, expected, rtol=2e-6)
    sums = walk(both, edges).policy
    entropy = jnp.log(sums.sum) - sums.weighted / sums.sum
    np.testing.assert_allclose(entropy, entropy_from_logits(kept[0][:, 6:]), rtol=1e-5)
    # The policy alone: its KL to a reference that has these words as well.
    np.testing.assert_allclose(walk((both[0], kept[1]), edges).kl, kl_from_logits(both[0], kept[1]), rtol=2e-6)
    assert jnp.all(walk((kept[0], both[1]), edges).kl == jnp.inf)


def test_log_softmax_keeps_its_digits_where_logits_are_large():
    logits = jnp.round(random_logits(0) * 64) / 64  # 2048 can be added without rounding
    expected = log_softmax(logits, walk((logits, logits), (4,)).policy)
    moved = log_softmax(logits + 2048, walk((logits + 2048, logits), (4,)).policy)
    np.testing.assert_array_equal(moved, expected)
    np.testing.assert_allclose(jnp.sum(jnp.exp(moved), axis=-1), np.ones(ROWS), rtol=1e-6)
