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
        targets: [...] int array. What is no word, as the label -100 of padding, has -inf: mask it.

    Returns:
        [...] float32 array.
    """
    chex.assert_equal_shape_prefix([logits, targets], targets.ndim)
    chex.assert_rank(logits, targets.ndim + 1)
    return at_targets(jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1), targets)


def at_targets(values: jax.Array, targets: jax.Array) -> jax.Array:
    """Picks [...] of [..., V] values by [...] targets, -inf where a target is no word."""
    found = jnp.take_along_axis(values, targets[..., None], axis=-1)[..., 0]
    return jnp.where((targets >= 0) & (targets < values.shape[-1]), found, -jnp.inf)


def entropy_from_logits(logits: jax.Array) -> jax.Array:
    """Entropy in nats of the softmax of [..., V] logits; [...] float32."""
    logprobs = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    finite = jnp.where(jnp.isfinite(logprobs), logprobs, 0.0)  # a class of probability 0 adds 0, not 0 * -inf
    return -jnp.sum(jnp.exp(logprobs) * finite, axis=-1)


def kl_from_logits(logits: jax.Array, ref_logits: jax.Array) -> jax.Array:
    """KL(policy || reference) in nats, sum over v of p_v log(p_v / q_v), of the softmaxes of logits.

    Args:
        logits: [..., V] float array of the policy.
        ref_logits: [..., V] float array of the reference. A word that it rules out (-inf) and the policy does not makes
            the KL inf; one that both rule out adds nothing.

    Returns:
        [...] float32 array.
    """
    chex.assert_equal_shape([logits, ref_logits])
    logprobs, ref_logprobs = (jax.nn.log_softmax(x.astype(jnp.float32), axis=-1) for x in (logits, ref_logits))
    return jnp.sum(kl_terms(logprobs, ref_logprobs), axis=-1)


def kl_terms(logprobs: jax.Array, ref_logprobs: jax.Array) -> jax.Array:
    """Terms p log(p / q) - p + q >= 0 of words; over a whole vocabulary they add up to KL(p || q).

    What is added to p log(p / q) adds up to 0 and makes the sum stable: no term is negative, and an error e in the
    log-sum-exp of p or q moves it by e KL or by e^2, where a plain sum moves by e itself, and turns negative where the
    models are close.

    Args:
        logprobs: [...] float32 array, log p.
        ref_logprobs: [...] float32 array, log q.

    Returns:
        [...] float32 array; 0 where p = q, inf where q alone is 0.
    """
    p, log_ratio = jnp.exp(logprobs), logprobs - ref_logprobs
    close = jnp.abs(log_ratio) < 1.0
    near = jnp.where(close, log_ratio, 0.0)  # p (r + exp(-r) - 1): no difference of p and q, which would cancel
    far = jnp.where(close | (p == 0.0), 0.0, log_ratio)  # exp(-r) could overflow; and 0 * log(0 / q) is 0
    return jnp.where(close, p * (near + jnp.expm1(-near)), p * far - p + jnp.exp(ref_logprobs))
