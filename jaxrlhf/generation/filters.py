"""Which words may be drawn: logits to processed logits, without a sort.

Top-k, top-p and min-p each say how far below the best logit a word may lie. The first two of these distances are found
by bisection: floats that are not negative are ordered as their bits are, so 31 passes of compare and add over the
words find each to the last bit. A sort of the vocabulary takes 20 times as long on a CPU.
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxrlhf.generation.settings import SamplingSettings
from jaxrlhf.generation.words import ENDS, FORBIDDEN, SEEN, marked

_INF = int(np.float32(np.inf).view(np.int32))


def processed_logits(logits: jax.Array, words: jax.Array, count: jax.Array, settings: SamplingSettings) -> jax.Array:
    """Logits of the distribution that is drawn from, counted from the most likely word.

    In this order: the repetition penalty (Keskar et al. 2019, as in transformers: of seen words, positive logits are
    divided by it and negative ones multiplied); forbidden words go, and EOS words while the answer is shorter than
    `min_new_tokens`; the temperature divides; top-k, whose ties with the k-th stay; top-p (Holtzman et al. 2020) of
    what top-k left, renormalised: the fewest words whose probability reaches p, at least one, and what ties with the
    last; min-p (Nguyen et al. 2024): words of at least min_p times the probability of the most likely one.

    Args:
        logits: [B, V] float32 array, -inf at padding of the vocabulary.
        words: [B, V] uint8, see `words.mark_words`.
        count: [B] int32, tokens that the answer has.
        settings: of B rows, as `per_row` returns them. At temperature 0 the logits are divided by 1.

    Returns:
        [B, V] float32: 0 at the most likely word, -inf at words that are out. All are -inf in a row whose words are all
        forbidden.
    """
    chex.assert_rank(logits, 2)
    chex.assert_type(logits, jnp.float32)
    chex.assert_equal_shape([logits, words])
    allowed = _allowed(logits, words, count, settings)
    best = jnp.max(allowed, axis=1, keepdims=True)
    best = jnp.where(best == -jnp.inf, 0.0, best)  # (-inf) - (-inf) is NaN
    heat = jnp.where(settings.temperature == 0.0, 1.0, settings.temperature)
    # Subtracted first: a small temperature may then push a word to inf, but never the best one.
    distance = (best - allowed) / heat[:, None]
    return jnp.where(distance <= _farthest(distance, settings)[:, None], -distance, -jnp.inf)


def _allowed(logits: jax.Array, words: jax.Array, count: jax.Array, settings: SamplingSettings) -> jax.Array:
    """Logits [B, V] after the repetition penalty, -inf at forbidden words and at those that would end too early."""
    penalty = settings.repetition_penalty[:, None]
    penalised = jnp.where(logits < 0.0, logits * penalty, logits / penalty)
    logits = jnp.where(marked(words, SEEN), penalised, logits)
    early = (count < settings.min_new_tokens)[:, None]
    out = marked(words, FORBIDDEN) | (marked(words, ENDS) & early)
    return jnp.where(out, -jnp.inf, logits)


def _farthest(distance: jax.Array, settings: SamplingSettings) -> jax.Array:
    """How far from the best word, in [B, V] distances, top-k, top-p and min-p together reach; [B]."""
    ones = jnp.ones_like(distance)
    wanted = jnp.where(settings.top_k > 0, settings.top_k.astype(jnp.float32), jnp.inf)
    by_k = _reaching(distance, ones, wanted)
    chances = jnp.where(distance <= by_k[:, None], jnp.exp(-distance), 0.0)
    wanted = jnp.where(settings.top_p < 1.0, settings.top_p * jnp.sum(chances, axis=1), jnp.inf)
    by_p = _reaching(distance, chances, wanted)
    by_min_p = -jnp.log(settings.min_p)
    return jnp.minimum(jnp.minimum(by_k, by_p), by_min_p)


def _reaching(distance: jax.Array, weights: jax.Array, wanted: jax.Array) -> jax.Array:
    """The least distance within which words have the wanted weight, inf where none do; free if nothing is wanted.

    Args:
        distance: [B, V] float32, not negative.
        weights: [B, V] float32, not negative.
        wanted: [B] float32, the sum of weights to reach; inf where all words may stay.

    Returns:
        [B] float32.
    """

    def halve(_: jax.Array, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds  # bits of floats; the one that is looked for is within
        middle = low + (high - low) // 2
        within = distance <= jax.lax.bitcast_convert_type(middle, jnp.float32)[:, None]
        enough = jnp.sum(jnp.where(within, weights, 0.0), axis=1) >= wanted
        return jnp.where(enough, low, middle + 1), jnp.where(enough, middle, high)

    def search() -> jax.Array:
        low, high = jnp.zeros(wanted.shape, jnp.int32), jnp.full(wanted.shape, _INF, jnp.int32)
        _, high = jax.lax.fori_loop(0, 31, halve, (low, high))
        return jax.lax.bitcast_convert_type(high, jnp.float32)

    return jax.lax.cond(jnp.any(wanted < jnp.inf), search, lambda: jnp.full_like(wanted, jnp.inf))
