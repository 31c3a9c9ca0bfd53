"""Which token sees which: in the rows of a batch, and in the columns of a cache."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxrlhf.types import KVCache


def segment_mask(
    segment_ids: jax.Array,
    prefix_ids: jax.Array | None = None,
    *,
    positions: jax.Array | None = None,
    window: int | None = None,
) -> jax.Array:
    """Which token each token sees: itself and earlier ones of its own segment; padding sees nothing.

    Args:
        segment_ids: [B, T] int array of the tokens, 0 at padding.
        prefix_ids: [B, T] int array, a second segment whose earlier tokens each token sees, 0 if none; None means 0
            everywhere.
        positions: [B, T] int array, of the tokens in their segment and the one it continues; needed with a window.
        window: how many positions a token sees, its own and those before it; None means all.

    Returns:
        [B, 1, T, T] bool array, True where a token (row) sees another (column).
    """
    tokens = jnp.arange(segment_ids.shape[1])
    seen = _holds(segment_ids, segment_ids)
    if prefix_ids is not None:
        seen |= _holds(segment_ids, prefix_ids)
    seen = (tokens[None, :] <= tokens[:, None])[None] & seen & within(positions, window)
    return seen[:, None]


def within(positions: jax.Array | None, window: int | None) -> jax.Array:
    """[B, T, T] bool: whether a token (column) is less than a window before another (row); [1, 1, 1] without one."""
    if window is None:
        return jnp.ones((1, 1, 1), bool)
    assert positions is not None, "a window is counted in positions"
    return positions[:, :, None] - positions[:, None, :] < window


def seen_columns(cache: KVCache, tokens: int, window: int | None = None) -> jax.Array:
    """Which columns each coming token sees: those of its row up to its own, within the window if there is one.

    Args:
        cache: the cache, `index` at the column of the first of them.
        tokens: how many come, T.
        window: how many columns a token sees, its own and those before it; None means all.

    Returns:
        [B, 1, T, S] bool array. What comes before the start of its row sees nothing.
    """
    columns, own = jnp.arange(cache.columns)[None, :], (cache.index + jnp.arange(tokens))[:, None]
    seen = columns <= own  # [T, S]
    if window is not None:
        seen &= own - columns < window
    of_row = columns >= cache.start[:, None]  # [B, S]
    return (seen[None] & of_row[:, None])[:, None]


def _holds(segment_ids: jax.Array, wanted: jax.Array) -> jax.Array:
    """[B, T, T] bool: whether a token (column) is of the segment that another (row) wants; none is of segment 0."""
    return (wanted[:, :, None] == segment_ids[:, None, :]) & (wanted != 0)[:, :, None]
