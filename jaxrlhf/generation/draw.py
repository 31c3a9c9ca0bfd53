"""One token from the logits of each row."""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxrlhf.generation.filters import processed_logits
from jaxrlhf.generation.settings import SamplingSettings
from jaxrlhf.sharding.mesh import target_platform

DrawMethod = Literal["gumbel", "cumulative"]

_BLOCK = 256
"""Words that are looked at together, first as one number; a vocabulary is 100 to 1000 times as many."""


class Drawn(NamedTuple):
    """What was drawn, a token a row.

    Attributes:
        tokens: [B] int32.
        logprobs: [B] float32, of the tokens under the softmax of the logits as they came.
        sampling_logprobs: [B] float32, of the tokens under the distribution drawn from; 0 where that is greedy.
    """

    tokens: jax.Array
    logprobs: jax.Array
    sampling_logprobs: jax.Array


def draw(
    logits: jax.Array,
    keys: jax.Array,
    words: jax.Array,
    count: jax.Array,
    settings: SamplingSettings,
    *,
    method: DrawMethod = "gumbel",
) -> Drawn:
    """Draws one token a row, from what `filters.processed_logits` leaves.

    A draw depends on the row's own logits, key, words, count and settings only. A row whose words are all out draws
    word 0, whose sampling log-probability is -inf, or 0 if the row is greedy. Logits that are NaN give a
    log-probability that is NaN.

    Args:
        logits: [B, V] float32 array, -inf at padding of the vocabulary.
        keys: [B] typed keys, consumed.
        words: [B, V] uint8, see `words.mark_words`.
        count: [B] int32, tokens that the answer has.
        settings: of B rows, as `per_row` returns them.
        method: "gumbel" draws a number for each word, and is stable against rounding: a change in the last bit of the
            logits matters only where two words all but tie. "cumulative" draws one number a row, which is cheaper, but
            adds up all words before the drawn one: rounding changes 0.14 % of its draws. Static.
    """
    processed = processed_logits(logits, words, count, settings)
    chances = jnp.exp(processed)  # the most likely word has 1
    greedy, most_likely = settings.temperature == 0.0, _argmax(processed)
    sample = {"gumbel": _gumbel, "cumulative": _cumulative}[method]
    tokens = jax.lax.cond(
        jnp.all(greedy),  # then nothing random is computed
        lambda: most_likely,
        lambda: jnp.where(greedy, most_likely, sample(chances, keys)),
    )
    total = jnp.maximum(jnp.sum(chances, axis=1), 1.0)  # below 1 only where all words are out, where it is 0
    return Drawn(
        tokens=tokens,
        logprobs=_at(logits, tokens) - jax.nn.logsumexp(logits, axis=1),
        sampling_logprobs=jnp.where(greedy, 0.0, _at(processed, tokens) - jnp.log(total)),
    )


def _gumbel(chances: jax.Array, keys: jax.Array) -> jax.Array:
    """Tokens [B], word v with probability chances[v] / sum(chances): the argmax of chances / e, e exponential.

    That is the Gumbel-max trick (Maddison et al. 2014) with one logarithm in place of two: -log(e) is Gumbel, and
    log(chance) - log(e) is largest where chance / e is.
    """
    bits = jax.vmap(lambda key: jax.random.bits(key, chances.shape[1:], jnp.uint32))(keys)
    # Winners have e near 0, where a float32 is finest: chances are exact to 2^-32. But 1 would make e infinite.
    uniform = jnp.minimum((jnp.astype(~bits, jnp.float32) + 0.5) * 2.0**-32, 1.0 - 2.0**-24)
    return _argmax(chances / -jnp.log1p(-uniform))


def _cumulative(chances: jax.Array, keys: jax.Array) -> jax.Array:
    """Tokens [B] by inversion of the cumulative distribution: first a block of words, then a word of it."""
    blocks = _blocks(chances, 0.0)
    sums = jnp.sum(blocks, axis=2)
    target = jax.vmap(jax.random.uniform)(keys) * jnp.sum(sums, axis=1)
    block, rest = _first_past(sums, target)
    word, _ = _first_past(_block(blocks, block), rest)
    return block * _BLOCK + word


def _first_past(chances: jax.Array, target: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The entry of [B, N] chances at which their sum passes the target [B], and what is left of that before it.

    Never one of chance 0, whatever is rounded: it is the last possible one that begins at or before the target, and the
    first possible one begins at 0.
    """
    before = jnp.cumsum(chances, axis=1) - chances
    begun = (chances > 0.0) & (before <= target[:, None])
    found = jnp.max(jnp.where(begun, jnp.arange(chances.shape[1], dtype=jnp.int32)[None, :], 0), axis=1)
    return found, target - _at(before, found)


def _argmax(values: jax.Array) -> jax.Array:
    """`jnp.argmax` of each row [B, V], on CPU block by block: its compiler vectorises a max, but no argmax."""
    if target_platform() != "cpu":  # words may be divided over devices, and blocks would be gathered
        return jnp.argmax(values, axis=1).astype(jnp.int32)
    blocks = _blocks(values, -jnp.inf)
    block = jnp.argmax(jnp.max(blocks, axis=2), axis=1).astype(jnp.int32)
    return block * _BLOCK + jnp.argmax(_block(blocks, block), axis=1).astype(jnp.int32)


def _blocks(values: jax.Array, fill: float) -> jax.Array:
    """Cuts [B, V] into blocks [B, N, _BLOCK]."""
    rows, vocab = values.shape
    padded = jnp.pad(values, ((0, 0), (0, -vocab % _BLOCK)), constant_values=fill)
    return padded.reshape(rows, -1, _BLOCK)


def _block(blocks: jax.Array, index: jax.Array) -> jax.Array:
    """Picks one block [B, _BLOCK] of each row."""
    return jnp.take_along_axis(blocks, index[:, None, None], axis=1)[:, 0]


def _at(values: jax.Array, index: jax.Array) -> jax.Array:
    """Picks one number [B] of each row [B, N]."""
    return jnp.take_along_axis(values, index[:, None], axis=1)[:, 0]
