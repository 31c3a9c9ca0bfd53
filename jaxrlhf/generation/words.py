"""The table of words: what is known of each word of the vocabulary for each row, a bit a fact."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

from jaxrlhf.generation.settings import SamplingSettings

SEEN = 1
"""The prompt or the answer so far holds the word; kept only while some row has a repetition penalty."""

FORBIDDEN = 2
"""The word is never drawn."""

ENDS = 4
"""The word ends an answer."""


def mark_words(settings: SamplingSettings, tokens: jax.Array, there: jax.Array, vocab: int) -> jax.Array:
    """The table before the first draw.

    Args:
        settings: of B rows, as `per_row` returns them. Ids beyond the vocabulary mark nothing.
        tokens: [B, P] int32, the prompts.
        there: [B, P] bool, False at padding.
        vocab: words V of the vocabulary. Static.

    Returns:
        [B, V] uint8.
    """
    chex.assert_equal_shape([tokens, there])
    words = jnp.zeros((tokens.shape[0], vocab), jnp.uint8)
    words = _mark(words, settings.forbidden_ids, FORBIDDEN)
    words = _mark(words, settings.eos_ids, ENDS)
    penalised = jnp.any(settings.repetition_penalty != 1.0)
    return jax.lax.cond(penalised, lambda: _mark(words, jnp.where(there, tokens, -1), SEEN), lambda: words)


def see(words: jax.Array, tokens: jax.Array, going: jax.Array) -> jax.Array:
    """The table after a draw: the drawn words are seen.

    Args:
        words: [B, V] uint8.
        tokens: [B] int32, just drawn.
        going: [B] bool, False for rows whose draw does not count.
    """
    chex.assert_equal_shape([tokens, going])
    return _mark(words, jnp.where(going, tokens, -1)[:, None], SEEN)


def marked(words: jax.Array, fact: int) -> jax.Array:
    """Where a table [...] has `SEEN`, `FORBIDDEN` or `ENDS`; [...] bool."""
    return words & jnp.uint8(fact) != 0


def _mark(words: jax.Array, ids: jax.Array, fact: int) -> jax.Array:
    """Adds a fact to the words ids [B, E] of each row; negative ids are none."""
    vocab = words.shape[1]
    rows = jnp.arange(words.shape[0])[:, None]
    columns = jnp.where(ids < 0, vocab, ids)  # a negative index would count from the end
    known = words.at[rows, columns].get(mode="fill", fill_value=0)
    return words.at[rows, columns].set(known | jnp.uint8(fact), mode="drop")
