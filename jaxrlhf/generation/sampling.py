"""One token from the logits of each row: filters and draws, all traced and per row."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

_OUT = -1e30
"""Logit of a token that a filter took out; finite, since (-inf) - (-inf) is NaN."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingSettings:
    """What a draw depends on; none of it recompiles anything.

    Attributes:
        temperature: [B] float32, divides the logits; 0 takes the most likely token.
        top_k: [B] int32, draw among the k most likely tokens, and those that tie with the last; 0 means all.
        top_p: [B] float32, draw among the fewest tokens whose probability reaches p; 1 means all. Comes after top-k.
        eos_ids: [E] int32, tokens that end an answer.
    """

    temperature: jax.Array
    top_k: jax.Array
    top_p: jax.Array
    eos_ids: jax.Array


def draw(logits: jax.Array, keys: jax.Array, settings: SamplingSettings) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Draws one token a row by the Gumbel-max trick.

    A draw depends on the row's own logits and key only, and is stable against rounding: noise is added to every logit,
    so a change in the last bit matters only where two sums all but tie.

    Args:
        logits: [B, V] float32.
        keys: [B] typed keys, consumed.
        settings: `SamplingSettings` of B rows.

    Returns:
        Tokens [B] int32, their log-probability under softmax(logits) [B], and under the distribution drawn from [B].
    """
    greedy = settings.temperature == 0.0
    heat = jnp.where(greedy, 1.0, settings.temperature)
    tempered = _filter(logits / heat[:, None], settings)
    noise = jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[1:], jnp.float32))(keys)
    tokens = jnp.argmax(jnp.where(greedy[:, None], logits, tempered + noise), axis=-1).astype(jnp.int32)
    sampling = jnp.where(greedy, 0.0, _logprob(tempered, tokens))
    return tokens, _logprob(logits, tokens), sampling


def _logprob(logits: jax.Array, tokens: jax.Array) -> jax.Array:
    chosen = jnp.take_along_axis(logits, tokens[:, None], axis=1)[:, 0]
    return chosen - jax.nn.logsumexp(logits, axis=1)


def _filter(logits: jax.Array, settings: SamplingSettings) -> jax.Array:
    """Takes out what top-k and then top-p exclude; sorts only if some row asks for either."""
    vocab = logits.shape[1]
    top_k = jnp.where(settings.top_k > 0, jnp.minimum(settings.top_k, vocab), vocab)

    def cut(logits: jax.Array) -> jax.Array:
        ordered = -jnp.sort(-logits, axis=1)
        rank = jnp.arange(vocab)[None, :]
        among_k = jnp.where(rank < top_k[:, None], ordered, _OUT)
        probabilities = jax.nn.softmax(among_k, axis=1)
        before = jnp.cumsum(probabilities, axis=1) - probabilities
        top_p = settings.top_p[:, None]
        kept = (rank < top_k[:, None]) & ((before < top_p) | (top_p >= 1.0) | (rank == 0))
        least = jnp.min(jnp.where(kept, ordered, jnp.inf), axis=1, keepdims=True)
        return jnp.where(logits >= least, logits, _OUT)

    wanted = jnp.any((top_k < vocab) | (settings.top_p < 1.0))
    return jax.lax.cond(wanted, cut, lambda logits: logits, logits)
