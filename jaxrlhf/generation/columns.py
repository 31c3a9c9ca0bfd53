"""How long the slots' cache is: little more than what it holds, in few sizes, since a program is compiled for each."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrlhf.generation.slots import Slots
from jaxrlhf.types import KVCache

_LEAST = 64
"""Columns below which it does not pay to have fewer."""


def bucket(needed: int, most: int, least: int | None = None) -> int:
    """The least of `least` * 1, 1.5, 2, 3, 4, 6, 8 ... that is not below `needed`, and no more than `most`."""
    size = _LEAST if least is None else least
    assert size > 1, "half of 1 is nothing"
    while size < needed:
        size = size * 3 // 2 if size % 3 else size // 3 * 4
    return min(size, most)


def make_room(slots: Slots, index: int, *, held: int, behind: int, ahead: int, most: int) -> tuple[Slots, int]:
    """Moves what the cache holds to its left end, and makes it as long as it will be needed.

    Args:
        slots: given away: their keys and values are freed one by one, so that there is no second copy of all.
        index: `KVCache.index`.
        held: columns before the index that are kept, no fewer than the slots that go on hold tokens in.
        behind: columns that there must be before the index.
        ahead: columns that there should be from it on.
        most: columns that are enough in any case.

    Returns:
        The slots and their new index.
    """
    new = max(held, behind)
    size, shift = bucket(new + ahead, most), np.int32(index - new)

    def move(old: jax.Array) -> jax.Array:
        moved = _move(old, shift, size)
        old.delete()
        return moved

    cache = slots.cache
    cache = KVCache(
        keys=jax.tree.map(move, cache.keys),
        values=jax.tree.map(move, cache.values),
        start=cache.start - shift,
        index=cache.index - shift,
    )
    return dataclasses.replace(slots, cache=cache), new


@functools.partial(jax.jit, static_argnames="size")
def _move(old: jax.Array, shift: Any, size: int) -> jax.Array:
    """[..., S, Dh] as [..., size, Dh], `shift` columns further left, which may be negative; new ones hold zeros."""
    axis = old.ndim - 2
    padding = [(size, size) if axis == number else (0, 0) for number in range(old.ndim)]
    return jax.lax.dynamic_slice_in_dim(jnp.pad(old, padding), size + shift, size, axis)
