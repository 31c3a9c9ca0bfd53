"""The language-model loss of supervised fine-tuning."""

from __future__ import annotations

import chex
import jax

from jaxrlhf.ops.masked import masked_mean
from jaxrlhf.ops.stats import Mean, mean_of


def lm_loss(
    logprobs: jax.Array, mask: jax.Array, *, denom: jax.Array | float | None = None
) -> tuple[jax.Array, dict[str, Mean]]:
    """Negative log-likelihood a trained token: -sum(logprobs) / (number of trained tokens).

    Args:
        logprobs: [B, T] float array, log-probability of each target token.
        mask: [B, T] bool array, True at trained targets.
        denom: number of trained tokens to divide by; None means those of `mask`.

    Returns:
        Scalar float32 loss, and metrics `loss`.
    """
    chex.assert_rank([logprobs, mask], 2)
    chex.assert_equal_shape([logprobs, mask])
    return masked_mean(-logprobs, mask, denom), {"loss": mean_of(-logprobs, mask)}
