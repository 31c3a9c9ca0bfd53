"""The gradient of every output by the logits of one tile.

With cotangents g of the outputs, log-probabilities p of the policy and q of the reference,

    dz_v = g_logp [v = target]
           + p_v (g_lse - g_logp - g_entropy (log p_v + entropy) + g_kl (log p_v - log q_v - kl)),
    dz_ref_v = g_ref_logp ([v = target] - q_v) + g_kl (q_v - p_v).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrlhf.kernels.statistics import Stats, Sums, log_softmax
from jaxrlhf.types import LogprobOut


class Cotangent(NamedTuple):
    """Cotangents of the outputs, [N] float32 each."""

    logp: jax.Array
    lse: jax.Array
    entropy: jax.Array
    kl: jax.Array
    ref_logp: jax.Array


def cotangent_of(out: LogprobOut, rows: int) -> Cotangent:
    """Cotangents with zeros for outputs that nobody wanted; `max_logit` takes none."""
    fields = (out.logp, out.lse, out.entropy, out.kl, out.ref_logp)
    return Cotangent(*(jnp.zeros(rows, jnp.float32) if field is None else field for field in fields))


def fields_of(stats: Stats, want: frozenset[str]) -> LogprobOut:
    """The outputs, from statistics of the whole vocabulary."""
    policy, reference = stats.policy, stats.reference
    lse = policy.max + policy.log_sum
    return LogprobOut(
        logp=policy.target - lse if "logp" in want else None,
        lse=lse if "lse" in want else None,
        entropy=entropy_of(policy) if "entropy" in want else None,
        max_logit=policy.max if "max_logit" in want else None,
        kl=stats.kl if "kl" in want else None,
        ref_logp=None
        if reference is None or "ref_logp" not in want
        else reference.target - (reference.max + reference.log_sum),
    )


def entropy_of(sums: Sums) -> jax.Array:
    """Entropy in nats, [N]."""
    assert sums.weighted is not None
    return sums.log_sum - sums.weighted / sums.sum


def logits_gradients(
    z: jax.Array,
    z_ref: jax.Array | None = None,
    *,
    hit: jax.Array,
    stats: Stats,
    g: Cotangent,
    want: frozenset[str],
) -> tuple[jax.Array, ...]:
    """Gradients [n, columns] by the policy's logits of one tile, and by the reference's if there is one.

    Args:
        z: [n, columns] logits of the policy.
        z_ref: the same of the reference, or None.
        hit: [n, columns] bool, True at the target.
        stats: of the whole vocabulary.
        g: cotangents.
        want: outputs that there are cotangents of.
    """
    logp = log_softmax(z, stats.policy)
    p = jnp.exp(logp)
    factor = (g.lse - g.logp)[:, None]
    if "entropy" in want:
        factor = factor - g.entropy[:, None] * (jnp.where(p > 0, logp, 0.0) + entropy_of(stats.policy)[:, None])
    if z_ref is None or stats.reference is None:
        return (p * factor + jnp.where(hit, g.logp[:, None], 0.0),)
    ref_logp = log_softmax(z_ref, stats.reference)
    q = jnp.exp(ref_logp)
    dz_ref = jnp.where(hit, g.ref_logp[:, None], 0.0) - g.ref_logp[:, None] * q
    if stats.kl is not None:
        excess = logp - ref_logp - stats.kl[:, None]
        factor = factor + g.kl[:, None] * jnp.where(p > 0, excess, 0.0)  # 0 * log(0 / q) is 0, also where q is 0
        dz_ref = dz_ref + g.kl[:, None] * (q - p)
    return p * factor + jnp.where(hit, g.logp[:, None], 0.0), dz_ref
