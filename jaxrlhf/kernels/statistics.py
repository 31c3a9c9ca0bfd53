"""Statistics of rows of logits that arrive in blocks: log-sum-exp, entropy and KL in one pass.

The sums are those of online softmax (Milakov and Gimelshein 2018). The KL follows from the chain rule of relative
entropy (Cover and Thomas, theorem 2.5.3): let the columns seen so far be one column of weight P under the policy and Q
under the reference, beside the block's own p_v and q_v, all together summing to one. Then

    KL = P KL_seen + P log(P / Q) + sum_v p_v log(p_v / q_v),

and `ops.kl_terms` of each column in place of p log(p / q) keeps the sum accurate where the models are close.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrlhf.ops.logprobs import kl_terms

_LOWEST = -1e30
"""Stands for -inf in a running maximum: (-inf) - (-inf) is NaN."""


class Running(NamedTuple):
    """Statistics of the columns seen so far, each [N] float32."""

    max: jax.Array  # largest logit
    sum: jax.Array  # sum of exp(z - max)
    weighted: jax.Array | None  # sum of exp(z - max) * (z - max), for the entropy
    target: jax.Array  # the target's logit; -inf until its block has come, and for ever if it has none


def nothing_seen(rows: int, *, entropy: bool) -> Running:
    """The statistics of no columns; `weighted` only where the entropy is wanted."""
    zeros = jnp.zeros(rows, jnp.float32)
    return Running(zeros + _LOWEST, zeros, zeros if entropy else None, zeros - jnp.inf)


def absorb(running: Running, z: jax.Array, fresh: jax.Array, hit: jax.Array) -> Running:
    """Adds a block of logits.

    Args:
        running: statistics of the columns before.
        z: [N, block] float32 logits.
        fresh: [1, block] bool, the columns to count.
        hit: [N, block] bool, True at the target's column if it is fresh.

    Returns:
        Statistics with the block's columns.
    """
    z = jnp.where(fresh, z, _LOWEST)
    top = jnp.maximum(running.max, jnp.max(z, axis=-1))
    shrink = jnp.exp(running.max - top)
    shifted = z - top[:, None]
    e = jnp.where(fresh, jnp.exp(shifted), 0.0)
    weighted = running.weighted
    if weighted is not None:
        moved = jnp.where(running.sum > 0, running.max - top, 0.0)
        weighted = shrink * (weighted + moved * running.sum) + jnp.sum(jnp.where(fresh, e * shifted, 0.0), axis=-1)
    target = jnp.maximum(running.target, jnp.max(jnp.where(hit, z, -jnp.inf), axis=-1))
    return Running(top, shrink * running.sum + jnp.sum(e, axis=-1), weighted, target)


def log_softmax(z: jax.Array, running: Running) -> jax.Array:
    """Log-probabilities [N, block] of a block of logits among the columns that were seen.

    Not z - lse: where logits are large, rounding their log-sum-exp to one float32 would lose digits.
    """
    return (z - running.max[:, None]) - _log_sum(running)[:, None]


def absorb_kl(
    kl: jax.Array,
    seen: tuple[Running, Running],
    now: tuple[Running, Running],
    logits: tuple[jax.Array, jax.Array],
    fresh: jax.Array,
) -> jax.Array:
    """Adds a block to a KL by the chain rule; every pair is of the policy and of the reference.

    Args:
        kl: [N] float32, KL between the distributions over the columns before; 0 if there are none.
        seen: statistics of the columns before.
        now: the same with the block.
        logits: [N, block] float32 each.
        fresh: [1, block] bool, the columns to count.

    Returns:
        [N] float32, KL between the distributions over all columns up to the block.
    """
    shares = [old.max - new.max + (_log_sum(old) - _log_sum(new)) for old, new in zip(seen, now, strict=True)]
    terms = kl_terms(*(log_softmax(z, new) for z, new in zip(logits, now, strict=True)))
    return jnp.exp(shares[0]) * kl + kl_terms(*shares) + jnp.sum(jnp.where(fresh, terms, 0.0), axis=-1)


def _log_sum(running: Running) -> jax.Array:
    # The sum is 0 before the first block, and while all logits are -inf; log(0) would end as NaN.
    return jnp.log(jnp.maximum(running.sum, jnp.finfo(jnp.float32).tiny))
