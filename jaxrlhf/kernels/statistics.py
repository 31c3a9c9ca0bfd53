"""Statistics of rows of logits that arrive in parts: log-sum-exp, entropy and KL in one pass.

A part is what one tile, one kernel block or one device has seen of a row; `combine_stats` merges any number of them.
The sums are those of online softmax (Milakov and Gimelshein 2018). The KL follows from the chain rule of relative
entropy (Cover and Thomas, theorem 2.5.3): let part i have weight P_i under the policy and Q_i under the reference, and
within it the distributions differ by KL_i. Then

    KL = sum_i P_i KL_i + sum_i P_i log(P_i / Q_i),

and `ops.kl_terms` in place of p log(p / q), within parts and between them, keeps the sum accurate where models are
close.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrlhf.ops.logprobs import kl_terms

_LOWEST = -1e30
"""Stands for -inf in a maximum: (-inf) - (-inf) is NaN."""


class Sums(NamedTuple):
    """What one model's logits add up to, each [N] float32.

    Attributes:
        max: the largest logit.
        sum: sum of exp(z - max).
        weighted: sum of exp(z - max) * (z - max), for the entropy; None unless wanted.
        target: the target's logit; -inf if it is not in this part.
    """

    max: jax.Array
    sum: jax.Array
    weighted: jax.Array | None
    target: jax.Array

    @property
    def log_sum(self) -> jax.Array:
        """Log of `sum`, finite also where there is nothing, or all logits are -inf."""
        return jnp.log(jnp.maximum(self.sum, jnp.finfo(jnp.float32).tiny))


class Stats(NamedTuple):
    """Statistics of a part of the vocabulary.

    Attributes:
        policy: the policy's sums.
        reference: the reference's, or None without one.
        kl: [N] float32, KL between the distributions within this part; None unless wanted.
    """

    policy: Sums
    reference: Sums | None = None
    kl: jax.Array | None = None


def no_stats(rows: int, *, entropy: bool, reference: bool, kl: bool) -> Stats:
    """The statistics of no words, which change nothing they are combined with."""
    zeros = jnp.zeros(rows, jnp.float32)

    def sums(entropy: bool) -> Sums:
        return Sums(zeros + _LOWEST, zeros, zeros if entropy else None, zeros - jnp.inf)

    return Stats(sums(entropy), sums(False) if reference else None, zeros if kl else None)


def tile_stats(
    z: jax.Array,
    z_ref: jax.Array | None = None,
    *,
    fresh: jax.Array,
    hit: jax.Array,
    entropy: bool,
    kl: bool,
) -> Stats:
    """The statistics of one tile of logits.

    Args:
        z: [N, columns] float32 logits of the policy.
        z_ref: the same of the reference, or None.
        fresh: [1, columns] bool, the columns to count.
        hit: [N, columns] bool, True at the target's column if it is fresh.
        entropy: whether `weighted` is wanted.
        kl: whether the KL is.
    """
    policy = _sums(z, fresh, hit, entropy)
    if z_ref is None:
        return Stats(policy)
    reference = _sums(z_ref, fresh, hit, False)
    if not kl:
        return Stats(policy, reference)
    terms = kl_terms(log_softmax(z, policy), log_softmax(z_ref, reference))
    return Stats(policy, reference, jnp.sum(jnp.where(fresh, terms, 0.0), axis=-1))


def log_softmax(z: jax.Array, sums: Sums) -> jax.Array:
    """Log-probabilities [N, columns] of logits among the words that were summed.

    Not z - lse: where logits are large, rounding their log-sum-exp to one float32 would lose digits.
    """
    return (z - sums.max[:, None]) - sums.log_sum[:, None]


def combine_stats(part: Stats, axis: str) -> Stats:
    """Merges the parts that a named axis holds, of devices or of `jax.vmap`; the order of parts does not matter.

    Args:
        part: the part of this place.
        axis: name of the axis.

    Returns:
        Statistics of all parts together, the same at every place.
    """
    policy = _combine_sums(part.policy, axis)
    if part.reference is None:
        return Stats(policy)
    reference = _combine_sums(part.reference, axis)
    if part.kl is None:
        return Stats(policy, reference)
    share, ref_share = _log_share(part.policy, policy), _log_share(part.reference, reference)
    p = jnp.exp(share)
    within = jnp.where(p > 0, p * part.kl, 0.0)  # 0 * inf: a part without weight, which the reference rules out
    return Stats(policy, reference, jax.lax.psum(within + kl_terms(share, ref_share), axis))


def merge_stats(parts: Stats) -> Stats:
    """`combine_stats` of parts stacked along a leading axis."""
    return jax.vmap(functools.partial(combine_stats, axis="parts"), axis_name="parts", out_axes=None)(parts)


def add_stats(left: Stats, right: Stats) -> Stats:
    """`combine_stats` of two."""
    return merge_stats(jax.tree.map(lambda a, b: jnp.stack([a, b]), left, right))


def _sums(z: jax.Array, fresh: jax.Array, hit: jax.Array, entropy: bool) -> Sums:
    z = jnp.where(fresh, z, -jnp.inf)
    top = jnp.maximum(jnp.max(z, axis=-1), _LOWEST)
    shifted = z - top[:, None]
    # The choice changes nothing: exp(-inf) is 0. It keeps XLA:CPU from giving exponential and sum to a library together
    # where no entropy is wanted, whose exponential differs in the last digit, and with it a log-probability.
    e = jnp.where(fresh, jnp.exp(shifted), 0.0)
    weighted = jnp.sum(jnp.where(e > 0, e * shifted, 0.0), axis=-1) if entropy else None  # 0 * -inf is NaN
    target = jnp.max(jnp.where(hit, z, -jnp.inf), axis=-1)
    return Sums(top, jnp.sum(e, axis=-1), weighted, target)


def _combine_sums(part: Sums, axis: str) -> Sums:
    top = jax.lax.pmax(part.max, axis)
    shrink = jnp.exp(part.max - top)
    weighted = part.weighted
    if weighted is not None:
        moved = weighted + (part.max - top) * part.sum
        weighted = jax.lax.psum(shrink * moved, axis)
    return Sums(top, jax.lax.psum(shrink * part.sum, axis), weighted, jax.lax.pmax(part.target, axis))


def _log_share(part: Sums, whole: Sums) -> jax.Array:
    return (part.max - whole.max) + (part.log_sum - whole.log_sum)
