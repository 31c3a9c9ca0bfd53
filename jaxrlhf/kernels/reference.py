"""`linear_logprobs` with the logits in memory: the truth that the other implementations are tested against."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxrlhf.kernels.inputs import Given, Side
from jaxrlhf.kernels.logits import logits_of
from jaxrlhf.ops.logprobs import at_targets, entropy_from_logits, kl_from_logits
from jaxrlhf.types import LogprobOut


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
    return at_targets(logits, targets) - jax.nn.logsumexp(logits, axis=-1)
