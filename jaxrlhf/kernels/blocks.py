"""Blocks of the vocabulary: how long they are, which columns they hold, and their logits.

The last block overlaps the one before instead of padding the weight, which would copy it; the columns that were seen
before are not `fresh`.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrlhf.kernels.reference import matmul_precision
from jaxrlhf.types import Head

LOGITS_BUDGET = 32 * 2**20
"""Bytes of one model's float32 logits that a block may hold."""

MIN_BLOCK, MAX_BLOCK = 512, 8192


class Walk(NamedTuple):
    """A walk over the vocabulary; static."""

    rows: int  # of the head's weight, padding among them
    vocab_size: int  # real ones
    block: int


def plan_walk(rows: int, head: Head) -> Walk:
    """The walk for [rows, D] hidden states."""
    vocab = head.weight.shape[0]
    return Walk(vocab, vocab if head.vocab_size is None else head.vocab_size, block_length(rows, vocab))


def block_length(rows: int, vocab: int) -> int:
    """Columns of a block: as many as the budget holds, a multiple of 128, between `MIN_BLOCK` and `MAX_BLOCK`."""
    fitting = LOGITS_BUDGET // (4 * max(rows, 1)) // 128 * 128
    return min(vocab, max(MIN_BLOCK, min(MAX_BLOCK, fitting)))


def blocks_of(walk: Walk) -> jax.Array:
    """The numbers of the blocks, int32."""
    return jnp.arange(-(-walk.rows // walk.block), dtype=jnp.int32)


def first_of(block: jax.Array, walk: Walk) -> jax.Array:
    """The first column of a block."""
    return jnp.minimum(block * walk.block, walk.rows - walk.block)


def columns_of(first: jax.Array, walk: Walk) -> jax.Array:
    """[1, block] int32: the columns of the block that begins at `first`."""
    return first + jnp.arange(walk.block, dtype=jnp.int32)[None, :]


def fresh_of(first: jax.Array, block: jax.Array, walk: Walk) -> jax.Array:
    """[1, block] bool: columns that are part of the vocabulary and were not in the block before."""
    columns = columns_of(first, walk)
    return (columns >= block * walk.block) & (columns < walk.vocab_size)


def block_logits(
    hidden: jax.Array, head: Head, temperature: jax.Array, first: jax.Array, walk: Walk
) -> tuple[jax.Array, jax.Array | float]:
    """Logits [N, block] / temperature of one block, and d(softcap)/d(raw logits)."""
    part = jax.lax.dynamic_slice_in_dim(head.weight, first, walk.block).astype(hidden.dtype)
    raw = head.scale * jnp.einsum(
        "nd,vd->nv", hidden, part, preferred_element_type=jnp.float32, precision=matmul_precision(hidden)
    )
    if head.bias is not None:
        raw = raw + jax.lax.dynamic_slice_in_dim(head.bias, first, walk.block).astype(jnp.float32)[None, :]
    if head.softcap is None:
        return raw / temperature, 1.0
    tanh = jnp.tanh(raw / head.softcap)
    return head.softcap * tanh / temperature, 1.0 - jnp.square(tanh)
