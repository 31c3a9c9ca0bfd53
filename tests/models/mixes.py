"""Queries, keys and values in rows of segments, and what a way to mix them makes of them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxrlhf.models.masks import segment_mask
from jaxrlhf.models.mix_xla import mix_whole


def segments_of(tokens):
    """Packed sequences before padding, one after padding, and nothing but padding."""
    third = tokens // 3
    rows = np.zeros((3, tokens), np.int32)
    rows[0, :third], rows[0, third : tokens - 5] = 1, 2
    rows[1, third:] = 1
    return jnp.asarray(rows)


def inputs(tokens, width, rows=3):
    shapes = [(rows, tokens, 4, width), (rows, tokens, 2, width), (rows, tokens, 2, width)]
    keys = jax.random.split(jax.random.key(0), 3)
    return [2 * jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]


def run(mix, segment_ids, parts):
    """Mixed values where a token is read, and the gradients of a sum of their squares."""

    def read(*parts):
        mixed = mix(*parts)
        return jnp.where((segment_ids != 0)[:, :, None, None], mixed, 0.0), mixed

    def loss(*parts):
        kept, mixed = read(*parts)
        return jnp.sum(jnp.square(kept)), (kept, mixed)

    (_, (kept, mixed)), grads = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(*parts)
    assert jnp.isfinite(mixed).all() and all(jnp.isfinite(grad).all() for grad in grads)
    return [kept, *grads]


def assert_near(found, expected):
    """Both are `run`'s; rounding is that of the largest numbers."""
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * float(jnp.abs(b).max()))


def whole(segment_ids, prefix_ids=None, *, window=None, **options):
    """`mix_whole` of rows; positions are those of `positions_within`."""
    mask = segment_mask(segment_ids, prefix_ids, positions=positions_within(segment_ids, prefix_ids), window=window)
    return functools.partial(mix_whole, mask, **options)


def positions_within(segment_ids, prefix_ids=None):
    """[B, T] positions from 0 in each segment, or from the end of the segment that it continues."""
    ids = np.asarray(segment_ids)
    prefixes = np.zeros_like(ids) if prefix_ids is None else np.asarray(prefix_ids)
    positions = np.zeros(ids.shape, np.int32)
    for row, column in np.ndindex(ids.shape):
        own = (ids[row, :column] == ids[row, column]).sum()
        before = (ids[row, :column] == prefixes[row, column]).sum() if prefixes[row, column] else 0
        positions[row, column] = own + before
    return jnp.asarray(positions)
