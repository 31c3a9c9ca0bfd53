"""Log-probabilities from logits that were materialised: for tests and small cases.

Everything else goes through `kernels.linear_logprobs`, which never holds [B, T, V].
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp


def logprobs_from_logits(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Log-probability of each target under the softmax of its logits.

    Args:
        logits: [..., V] float array.
        targets: [...] int array.

    Returns:
        [...] float32 array.
    """
    chex.assert_equal_shape_prefix([logits, targets], targets.ndim)
    chex.assert_rank(logits, targets.ndim + 1)
    logprobs = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    return jnp.take_along_axis(logprobs, targets[..., None], axis=-1)[..., 0]


def entropy_from_logits(logits: jax.Array) -> jax.Array:
    """Entropy in nats of the softmax of [..., V] logits; [...] float32."""
    logprobs = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    finite = jnp.where(jnp.isfinite(logprobs), logprobs, 0.0)  # a class of probability 0 adds 0, not 0 * -inf
    return -jnp.sum(jnp.exp(logprobs) * finite, axis=-1)
