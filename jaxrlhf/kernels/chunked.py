"""`linear_logprobs` by blocks of the vocabulary, in plain XLA: the default on every platform.

The forward pass walks the vocabulary once and keeps running statistics of each row, as online softmax does (Milakov and
Gimelshein 2018); the backward pass computes the blocks of logits again from the saved log-sum-exp (Wijmans et al. 2024,
"Cut your losses"). Between the two live two float32 numbers a row; neither ever holds [N, V]. The head's gradient is
written block by block, each block complete, so it is summed in float32 and rounded once.

The last block overlaps the one before instead of padding the weight, which would copy it: its columns that were seen
before are left out of the sums, and their part of the head's gradient is written again with the same value.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrlhf.kernels.reference import matmul_precision
from jaxrlhf.types import Head, LogprobOut

LOGITS_BUDGET = 32 * 2**20
"""Bytes of float32 logits that one block may hold."""

MIN_BLOCK, MAX_BLOCK = 512, 8192

_LOWEST = -1e30
"""Stands for -inf in a running maximum: (-inf) - (-inf) is NaN."""


class _Spec(NamedTuple):
    """What is static: the wanted fields, the head's constants, and the block length."""

    want: frozenset[str]
    softcap: float | None
    scale: float
    vocab_size: int
    block: int


class _Running(NamedTuple):
    """Statistics of the columns seen so far, each [N] float32."""

    max: jax.Array  # largest logit
    sum: jax.Array  # sum of exp(z - max)
    weighted: jax.Array | None  # sum of exp(z - max) * (z - max), for the entropy
    target: jax.Array  # the target's logit; -inf until its block has come, and for ever if it has none


def chunked_logprobs(
    hidden: jax.Array, head: Head, targets: jax.Array, temperature: jax.Array, want: frozenset[str]
) -> LogprobOut:
    """Implements `linear_logprobs` on [N, D] rows with at most [N, block] logits in memory."""
    rows, vocab = hidden.shape[0], head.weight.shape[0]
    spec = _Spec(
        want=want,
        softcap=head.softcap,
        scale=head.scale,
        vocab_size=vocab if head.vocab_size is None else head.vocab_size,
        block=block_length(rows, vocab),
    )
    return _chunked(hidden, head.weight, head.bias, targets, temperature, spec)


def block_length(rows: int, vocab: int) -> int:
    """Columns of a block: as many as the budget holds, a multiple of 128, between `MIN_BLOCK` and `MAX_BLOCK`."""
    fitting = LOGITS_BUDGET // (4 * max(rows, 1)) // 128 * 128
    return min(vocab, max(MIN_BLOCK, min(MAX_BLOCK, fitting)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _chunked(
    hidden: jax.Array,
    weight: jax.Array,
    bias: jax.Array | None,
    targets: jax.Array,
    temperature: jax.Array,
    spec: _Spec,
) -> LogprobOut:
    return _forward(hidden, weight, bias, targets, temperature, spec)[0]


def _forward(hidden, weight, bias, targets, temperature, spec: _Spec):
    rows = hidden.shape[0]
    zeros = jnp.zeros(rows, jnp.float32)
    start = _Running(zeros + _LOWEST, zeros, zeros if "entropy" in spec.want else None, zeros - jnp.inf)

    def absorb(running: _Running, block: jax.Array):
        first, z, _ = _block_logits(hidden, weight, bias, temperature, spec, block)
        columns, real = _columns(first, spec), _fresh(first, block, spec)
        z = jnp.where(real, z, _LOWEST)
        top = jnp.maximum(running.max, jnp.max(z, axis=-1))
        shrink = jnp.exp(running.max - top)
        shifted = z - top[:, None]
        e = jnp.where(real, jnp.exp(shifted), 0.0)
        weighted = running.weighted
        if weighted is not None:
            moved = jnp.where(running.sum > 0, running.max - top, 0.0)
            weighted = shrink * (weighted + moved * running.sum) + jnp.sum(jnp.where(real, e * shifted, 0.0), axis=-1)
        hit = real & (columns == targets[:, None])
        target = jnp.maximum(running.target, jnp.max(jnp.where(hit, z, -jnp.inf), axis=-1))
        return _Running(top, shrink * running.sum + jnp.sum(e, axis=-1), weighted, target), None

    end, _ = jax.lax.scan(absorb, start, _blocks(weight, spec))
    log_sum = jnp.log(end.sum)
    lse = end.max + log_sum
    entropy = None if end.weighted is None else log_sum - end.weighted / end.sum
    out = LogprobOut(
        logp=end.target - lse if "logp" in spec.want else None,
        lse=lse if "lse" in spec.want else None,
        entropy=entropy,
        max_logit=end.max if "max_logit" in spec.want else None,
    )
    return out, (hidden, weight, bias, targets, temperature, lse, entropy)


def _backward(spec: _Spec, residuals, cotangent: LogprobOut):
    hidden, weight, bias, targets, temperature, lse, entropy = residuals
    zeros = jnp.zeros_like(lse)
    g_logp, g_lse, g_entropy = (zeros if g is None else g for g in (cotangent.logp, cotangent.lse, cotangent.entropy))
    precision = matmul_precision(hidden)

    def visit(carry, block: jax.Array):
        d_hidden, d_weight, d_bias = carry
        first, z, slope = _block_logits(hidden, weight, bias, temperature, spec, block)
        columns = _columns(first, spec)
        logp = z - lse[:, None]
        factor = (g_lse - g_logp)[:, None]
        if entropy is not None:
            factor = factor - g_entropy[:, None] * (logp + entropy[:, None])
        dz = jnp.exp(logp) * factor + jnp.where(columns == targets[:, None], g_logp[:, None], 0.0)
        # The mask comes last: a factor of a padded column may be NaN, and 0 * NaN is NaN.
        draw = jnp.where(columns < spec.vocab_size, dz * slope / temperature, 0.0)
        if d_bias is not None:
            d_bias = jax.lax.dynamic_update_slice(d_bias, jnp.sum(draw, axis=0).astype(d_bias.dtype), (first,))
        draw = draw * spec.scale
        d_block = jnp.einsum(
            "nv,nd->vd",
            draw.astype(hidden.dtype),
            hidden,
            preferred_element_type=jnp.float32,
            precision=precision,
        )
        d_weight = jax.lax.dynamic_update_slice(d_weight, d_block.astype(d_weight.dtype), (first, 0))
        fresh = jnp.where(_fresh(first, block, spec), draw, 0.0).astype(hidden.dtype)
        d_hidden = d_hidden + jnp.einsum(
            "nv,vd->nd",
            fresh,
            jax.lax.dynamic_slice_in_dim(weight, first, spec.block).astype(hidden.dtype),
            preferred_element_type=jnp.float32,
            precision=precision,
        )
        return (d_hidden, d_weight, d_bias), None

    start = (
        jnp.zeros(hidden.shape, jnp.float32),
        jnp.zeros_like(weight),
        None if bias is None else jnp.zeros_like(bias),
    )
    (d_hidden, d_weight, d_bias), _ = jax.lax.scan(visit, start, _blocks(weight, spec))
    return d_hidden.astype(hidden.dtype), d_weight, d_bias, None, None


_chunked.defvjp(_forward, _backward)


def _blocks(weight: jax.Array, spec: _Spec) -> jax.Array:
    return jnp.arange(-(-weight.shape[0] // spec.block), dtype=jnp.int32)


def _block_logits(hidden, weight, bias, temperature, spec: _Spec, block: jax.Array):
    """First column, logits [N, block] / temperature, and d(softcap)/d(raw logits), of one block."""
    first = jnp.minimum(block * spec.block, weight.shape[0] - spec.block)
    part = jax.lax.dynamic_slice_in_dim(weight, first, spec.block).astype(hidden.dtype)
    raw = spec.scale * jnp.einsum(
        "nd,vd->nv", hidden, part, preferred_element_type=jnp.float32, precision=matmul_precision(hidden)
    )
    if bias is not None:
        raw = raw + jax.lax.dynamic_slice_in_dim(bias, first, spec.block).astype(jnp.float32)[None, :]
    if spec.softcap is None:
        return first, raw / temperature, 1.0
    tanh = jnp.tanh(raw / spec.softcap)
    return first, spec.softcap * tanh / temperature, 1.0 - jnp.square(tanh)


def _columns(first: jax.Array, spec: _Spec) -> jax.Array:
    return first + jnp.arange(spec.block, dtype=jnp.int32)[None, :]


def _fresh(first: jax.Array, block: jax.Array, spec: _Spec) -> jax.Array:
    """[1, block] bool: columns that are part of the vocabulary and were not in the block before."""
    columns = _columns(first, spec)
    return (columns >= block * spec.block) & (columns < spec.vocab_size)
