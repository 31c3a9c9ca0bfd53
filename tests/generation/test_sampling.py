import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrlhf.generation.sampling import SamplingSettings, draw

PROBABILITIES = np.asarray([0.05, 0.4, 0.15, 0.3, 0.1])
LOGITS = jnp.asarray(np.log(PROBABILITIES) + 2.0, jnp.float32)
DRAWS = 20_000
CHI_SQUARE_99_9 = {1: 10.83, 2: 13.82, 3: 16.27, 4: 18.47}  # by degrees of freedom: exceeded once in a thousand
_draw = jax.jit(draw)


def settings(rows: int, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> SamplingSettings:
    return SamplingSettings(
        temperature=jnp.full(rows, temperature, jnp.float32),
        top_k=jnp.full(rows, top_k, jnp.int32),
        top_p=jnp.full(rows, top_p, jnp.float32),
        eos_ids=jnp.zeros(1, jnp.int32),
    )


@functools.cache
def drawn(temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0):
    keys = jax.random.split(jax.random.key(7), DRAWS)
    return _draw(jnp.tile(LOGITS, (DRAWS, 1)), keys, settings(DRAWS, temperature, top_k, top_p))


CASES = {
    "as_it_is": ({}, PROBABILITIES),
    "cold": ({"temperature": 0.5}, PROBABILITIES**2),
    "hot": ({"temperature": 2.0}, PROBABILITIES**0.5),
    "top_2": ({"top_k": 2}, PROBABILITIES * [0, 1, 0, 1, 0]),
    "top_9_of_5": ({"top_k": 9}, PROBABILITIES),
    "the_fewest_that_reach_0.69": ({"top_p": 0.69}, PROBABILITIES * [0, 1, 0, 1, 0]),
    "the_fewest_that_reach_0.71": ({"top_p": 0.71}, PROBABILITIES * [0, 1, 1, 1, 0]),
    "the_first_alone_reaches_0.3": ({"top_p": 0.3}, PROBABILITIES * [0, 1, 0, 0, 0]),
    # Top-p is of what top-k left, renormalised: 0.4 / 0.85 = 0.47, and with 0.3 0.82.
    "top_3_then_0.8": ({"top_k": 3, "top_p": 0.8}, PROBABILITIES * [0, 1, 0, 1, 0]),
    # Top-p is of the tempered distribution: squared, 0.4 has 0.58 and with 0.3 0.91.
    "cold_then_0.8": ({"temperature": 0.5, "top_p": 0.8}, PROBABILITIES**2 * [0, 1, 0, 1, 0]),
}


@pytest.mark.parametrize("options, weights", CASES.values(), ids=list(CASES))
def test_draws_follow_the_distribution(options: dict[str, float], weights: np.ndarray):
    tokens, _, _ = drawn(**options)
    counts, expected = np.bincount(tokens, minlength=5), DRAWS * weights / weights.sum()
    possible = expected > 0
    assert not counts[~possible].any()
    degrees = int(possible.sum()) - 1
    statistic = np.sum((counts - expected)[possible] ** 2 / expected[possible])
    assert statistic < CHI_SQUARE_99_9[degrees] if degrees else statistic == 0


@pytest.mark.parametrize("options, weights", CASES.values(), ids=list(CASES))
def test_log_probabilities_are_of_the_full_softmax_and_of_what_was_drawn_from(options: dict, weights: np.ndarray):
    tokens, logprobs, sampling_logprobs = drawn(**options)
    np.testing.assert_allclose(logprobs, np.log(PROBABILITIES)[tokens], rtol=1e-5)
    np.testing.assert_allclose(sampling_logprobs, np.log((weights / weights.sum())[tokens]), atol=1e-5)


def test_the_token_at_which_the_probability_is_reached_is_kept():
    fifths = -0.01 * jnp.arange(5.0)  # nearly a fifth each, falling
    keys = jax.random.split(jax.random.key(0), 400)
    for top_p, kept in [(0.1, 1), (0.3, 2), (0.5, 3), (0.7, 4), (0.9, 5)]:
        tokens, _, _ = _draw(jnp.tile(fifths, (400, 1)), keys, settings(400, top_p=top_p))
        assert set(np.asarray(tokens).tolist()) == set(range(kept))


def test_temperature_0_and_top_1_take_the_most_likely_token():
    logits = 0.1 * jax.random.normal(jax.random.key(1), (400, 5))
    keys = jax.random.split(jax.random.key(2), 400)
    for options in ({"temperature": 0.0}, {"top_k": 1}, {"top_p": 0.0}, {"temperature": 0.0, "top_k": 3}):
        tokens, logprobs, sampling_logprobs = _draw(logits, keys, settings(400, **options))
        np.testing.assert_array_equal(tokens, jnp.argmax(logits, axis=1))
        np.testing.assert_allclose(logprobs, jnp.max(jax.nn.log_softmax(logits), axis=1), rtol=1e-5)
        np.testing.assert_allclose(sampling_logprobs, 0.0, atol=1e-6)


def test_each_row_has_its_own_settings():
    rows = SamplingSettings(
        temperature=jnp.asarray([1.0, 0.0, 1.0, 0.5]),
        top_k=jnp.asarray([0, 0, 2, 0]),
        top_p=jnp.asarray([1.0, 1.0, 1.0, 0.8]),
        eos_ids=jnp.zeros(1, jnp.int32),
    )
    keys = jax.random.split(jax.random.key(3), 4)
    together = _draw(jnp.tile(LOGITS, (4, 1)), keys, rows)
    for row, options in enumerate(({}, {"temperature": 0.0}, {"top_k": 2}, {"temperature": 0.5, "top_p": 0.8})):
        alone = _draw(LOGITS[None], keys[row : row + 1], settings(1, **options))
        assert together[0][row] == alone[0][0]
        np.testing.assert_allclose([x[row] for x in together[1:]], [x[0] for x in alone[1:]], atol=1e-6)


def test_padded_columns_of_the_vocabulary_are_never_drawn():
    padded = jnp.concatenate([jnp.zeros((400, 2)), jnp.full((400, 3), -jnp.inf)], axis=1)
    keys = jax.random.split(jax.random.key(4), 400)
    for options in ({}, {"temperature": 5.0}, {"top_k": 4}, {"top_p": 0.99}, {"temperature": 0.0}):
        tokens, logprobs, sampling_logprobs = _draw(padded, keys, settings(400, **options))
        assert tokens.max() <= 1
        np.testing.assert_allclose(logprobs, np.log(0.5), rtol=1e-5)
        assert jnp.isfinite(sampling_logprobs).all()


def test_a_draw_depends_on_its_key_alone():
    keys = jax.random.split(jax.random.key(5), 400)
    first, again = (_draw(jnp.tile(LOGITS, (400, 1)), keys, settings(400))[0] for _ in range(2))
    np.testing.assert_array_equal(first, again)
    reversed_tokens, _, _ = _draw(jnp.tile(LOGITS, (400, 1)), keys[::-1], settings(400))
    np.testing.assert_array_equal(reversed_tokens[::-1], first)
    assert len(set(np.asarray(first).tolist())) == 5
