"""`linear_logprobs` by blocks of the vocabulary, in plain XLA: the default on every platform.

The forward pass walks the vocabulary once and keeps running statistics of each row (`statistics.py`); the backward pass
computes the blocks of logits again from the saved log-sum-exp (Wijmans et al. 2024, "Cut your losses"). Between the two
live a few float32 numbers a row; neither ever holds [N, V]. The head's gradient is written block by block, each block
complete, so it is summed in float32 and rounded once. What the last block shares with the one before (`blocks.py`) is
left out of the sums, and its part of the head's gradient is written again with the same value.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrlhf.kernels.blocks import Walk, block_logits, blocks_of, columns_of, first_of, fresh_of, plan_walk
from jaxrlhf.kernels.reference import Reference, matmul_precision
from jaxrlhf.kernels.statistics import Running, absorb, absorb_kl, log_softmax, nothing_seen
from jaxrlhf.types import Head, LogprobOut


class _Spec(NamedTuple):
    """What is static: the wanted fields, and the walk."""

    want: frozenset[str]
    walk: Walk


class _Seen(NamedTuple):
    """What the forward pass carries from block to block; the last two are None without a reference or its KL."""

    policy: Running
    reference: Running | None
    kl: jax.Array | None  # [N] float32


class _Compared(NamedTuple):
    """What the KL's gradient needs."""

    policy: Running
    reference: Running
    kl: jax.Array  # [N] float32


class _Saved(NamedTuple):
    """What the forward pass leaves to the backward pass beside its inputs."""

    lse: jax.Array  # [N] float32
    entropy: jax.Array | None  # [N] float32; None unless wanted
    compared: _Compared | None  # None unless the KL is wanted


def chunked_logprobs(
    hidden: jax.Array,
    head: Head,
    targets: jax.Array,
    temperature: jax.Array,
    want: frozenset[str],
    ref: Reference | None = None,
) -> LogprobOut:
    """Implements `linear_logprobs` on [N, D] rows with at most [N, block] logits of each model in memory."""
    return _chunked(hidden, head, targets, temperature, ref, _Spec(want, plan_walk(hidden.shape[0], head)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _chunked(
    hidden: jax.Array,
    head: Head,
    targets: jax.Array,
    temperature: jax.Array,
    ref: Reference | None,
    spec: _Spec,
) -> LogprobOut:
    return _forward(hidden, head, targets, temperature, ref, spec)[0]


def _forward(hidden, head, targets, temperature, ref: Reference | None, spec: _Spec):
    def visit(seen: _Seen, block: jax.Array):
        first = first_of(block, spec.walk)
        z, _ = block_logits(hidden, head, temperature, first, spec.walk)
        fresh = fresh_of(first, block, spec.walk)
        hit = fresh & (columns_of(first, spec.walk) == targets[:, None])
        policy = absorb(seen.policy, z, fresh, hit)
        if ref is None or seen.reference is None:
            return _Seen(policy, None, None), None
        z_ref, _ = block_logits(*ref, temperature, first, spec.walk)
        reference = absorb(seen.reference, z_ref, fresh, hit)
        kl = seen.kl
        if kl is not None:
            kl = absorb_kl(kl, (seen.policy, seen.reference), (policy, reference), (z, z_ref), fresh)
        return _Seen(policy, reference, kl), None

    rows = hidden.shape[0]
    start = _Seen(
        policy=nothing_seen(rows, entropy="entropy" in spec.want),
        reference=None if ref is None else nothing_seen(rows, entropy=False),
        kl=jnp.zeros(rows, jnp.float32) if "kl" in spec.want else None,
    )
    end, _ = jax.lax.scan(visit, start, blocks_of(spec.walk))
    out, lse, entropy = _fields(end, spec.want)
    compared = None
    if end.reference is not None and end.kl is not None:
        compared = _Compared(end.policy, end.reference, end.kl)
    return out, (hidden, head, targets, temperature, ref, _Saved(lse, entropy, compared))


def _fields(end: _Seen, want: frozenset[str]) -> tuple[LogprobOut, jax.Array, jax.Array | None]:
    """The wanted fields, and the log-sum-exp and entropy that the gradient needs."""
    policy, reference = end.policy, end.reference
    log_sum = jnp.log(policy.sum)
    lse = policy.max + log_sum
    entropy = None if policy.weighted is None else log_sum - policy.weighted / policy.sum
    ref_logp = None
    if reference is not None and "ref_logp" in want:
        ref_logp = reference.target - (reference.max + jnp.log(reference.sum))
    out = LogprobOut(
        logp=policy.target - lse if "logp" in want else None,
        lse=lse if "lse" in want else None,
        entropy=entropy,
        max_logit=policy.max if "max_logit" in want else None,
        kl=end.kl,
        ref_logp=ref_logp,
    )
    return out, lse, entropy


def _backward(spec: _Spec, residuals, cotangent: LogprobOut):
    hidden, head, targets, temperature, ref, saved = residuals
    precision = matmul_precision(hidden)

    def visit(carry, block: jax.Array):
        d_hidden, d_weight, d_bias = carry
        first = first_of(block, spec.walk)
        z, slope = block_logits(hidden, head, temperature, first, spec.walk)
        columns = columns_of(first, spec.walk)
        z_ref = None if saved.compared is None else block_logits(ref[0], ref[1], temperature, first, spec.walk)[0]
        dz = _logits_gradient(z, z_ref, columns, targets, saved, cotangent)
        # The mask comes last: a factor of a padded column may be NaN, and 0 * NaN is NaN.
        draw = jnp.where(columns < spec.walk.vocab_size, dz * slope / temperature, 0.0)
        if d_bias is not None:
            d_bias = jax.lax.dynamic_update_slice(d_bias, jnp.sum(draw, axis=0).astype(d_bias.dtype), (first,))
        draw = draw * head.scale
        d_block = jnp.einsum(
            "nv,nd->vd",
            draw.astype(hidden.dtype),
            hidden,
            preferred_element_type=jnp.float32,
            precision=precision,
        )
        d_weight = jax.lax.dynamic_update_slice(d_weight, d_block.astype(d_weight.dtype), (first, 0))
        fresh = jnp.where(fresh_of(first, block, spec.walk), draw, 0.0).astype(hidden.dtype)
        d_hidden = d_hidden + jnp.einsum(
            "nv,vd->nd",
            fresh,
            jax.lax.dynamic_slice_in_dim(head.weight, first, spec.walk.block).astype(hidden.dtype),
            preferred_element_type=jnp.float32,
            precision=precision,
        )
        return (d_hidden, d_weight, d_bias), None

    start = (
        jnp.zeros(hidden.shape, jnp.float32),
        jnp.zeros_like(head.weight),
        None if head.bias is None else jnp.zeros_like(head.bias),
    )
    (d_hidden, d_weight, d_bias), _ = jax.lax.scan(visit, start, blocks_of(spec.walk))
    return d_hidden.astype(hidden.dtype), dataclasses.replace(head, weight=d_weight, bias=d_bias), None, None, None


def _logits_gradient(
    z: jax.Array,
    z_ref: jax.Array | None,
    columns: jax.Array,
    targets: jax.Array,
    saved: _Saved,
    cotangent: LogprobOut,
) -> jax.Array:
    """Gradient [N, block] by the logits of one block.

    With cotangents g of the fields, and q the reference's probabilities,

        dz_v = g_logp [v = target]
             + p_v (g_lse - g_logp - g_entropy (log p_v + entropy) + g_kl (log p_v - log q_v - kl)).
    """
    g_logp, g_lse, g_entropy, g_kl = (
        (jnp.zeros_like(saved.lse) if g is None else g)[:, None]
        for g in (cotangent.logp, cotangent.lse, cotangent.entropy, cotangent.kl)
    )
    compared = saved.compared
    logp = z - saved.lse[:, None] if compared is None else log_softmax(z, compared.policy)
    p = jnp.exp(logp)
    factor = g_lse - g_logp
    if saved.entropy is not None:
        factor = factor - g_entropy * (logp + saved.entropy[:, None])
    if compared is not None and z_ref is not None:
        excess = logp - log_softmax(z_ref, compared.reference) - compared.kl[:, None]
        factor = factor + g_kl * jnp.where(p > 0, excess, 0.0)  # 0 * log(0 / q) is 0, also where q is 0
    return p * factor + jnp.where(columns == targets[:, None], g_logp, 0.0)


_chunked.defvjp(_forward, _backward)
