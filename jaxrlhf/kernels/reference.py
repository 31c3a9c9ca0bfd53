"""`linear_logprobs` with the logits in memory: the truth that the other implementations are tested against."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxrlhf.kernels.inputs import Given, Side
from jaxrlhf.ops.logprobs import entropy_from_logits, kl_from_logits
from jaxrlhf.types import Head, LogprobOut


def logits_of(hidden: jax.Array, head: Head) -> jax.Array:
    """The logits of [..., D] hidden states: [..., V] float32, -inf at padded rows of the vocabulary."""
    logits = head.scale * jnp.einsum(
        "...d,vd->...v" if head.layout == "vd" else "...d,dv->...v",
        hidden,
        head.weight.astype(hidden.dtype),
        preferred_element_type=jnp.float32,
        precision=matmul_precision(hidden),
    )
    if head.bias is not None:
        logits = logits + head.bias.reshape((1,) * (hidden.ndim - 1) + (-1,)).astype(jnp.float32)
    if head.softcap is not None:
        logits = head.softcap * jnp.tanh(logits / head.softcap)
    if head.vocab_size is not None:
        real = (jnp.arange(logits.shape[-1]) < head.vocab_size).reshape((1,) * (hidden.ndim - 1) + (-1,))
        logits = jnp.where(real, logits, -jnp.inf)
    return logits


def matmul_precision(operand: jax.Array) -> jax.lax.Precision | None:
    """Full precision for float32 operands, which accelerators would round to bfloat16 or TF32; else their default."""
    return jax.lax.Precision.HIGHEST if operand.dtype == jnp.float32 else None


def reference_logprobs(sides: tuple[Side, ...], given: Given, want: frozenset[str], trained: int) -> LogprobOut:
    """Implements `linear_logprobs` on [N, D] rows with logits [N, V] in memory; autodiff gives the gradients."""
    del trained  # the others have no gradient to receive
    logits, *others = (logits_of(side.hidden, side.head) / given.temperature for side in sides)
    ref_logits = others[0] if others else None
    lse = jax.nn.logsumexp(logits, axis=-1)
    return LogprobOut(
        logp=_target_logp(logits, given.targets) if "logp" in want else None,
        lse=lse if "lse" in want else None,
        entropy=entropy_from_logits(logits) if "entropy" in want else None,
        max_logit=jax.lax.stop_gradient(jnp.max(logits, axis=-1)) if "max_logit" in want else None,
        kl=kl_from_logits(logits, ref_logits) if ref_logits is not None and "kl" in want else None,
        ref_logp=_target_logp(ref_logits, given.targets) if ref_logits is not None and "ref_logp" in want else None,
    )


def _target_logp(logits: jax.Array, targets: jax.Array) -> jax.Array:
    # By the log-sum-exp that is returned: `logp >= max_logit - lse` must round alike on both sides.
    return jnp.take_along_axis(logits, targets[:, None], axis=-1)[:, 0] - jax.nn.logsumexp(logits, axis=-1)
