import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrlhf.generation.draw import DrawMethod, Drawn, draw
from jaxrlhf.generation.settings import SamplingSettings, per_row
from jaxrlhf.generation.words import mark_words

METHODS: tuple[DrawMethod, ...] = ("gumbel", "cumulative")
PROBABILITIES = np.asarray([0.05, 0.4, 0.15, 0.3, 0.1])
LOGITS = np.log(PROBABILITIES) + 2.0  # of both signs
SEEN = [0, 1]
COUNT = 3
DRAWS = 50_000
CHI_SQUARE_99_9 = {1: 10.83, 2: 13.82, 3: 16.27, 4: 18.47}  # by degrees of freedom: exceeded once in a thousand
_draw = jax.jit(draw, static_argnames="method")
_mark_words = jax.jit(mark_words, static_argnames="vocab")


def draw_rows(logits: Any, keys: jax.Array, method: DrawMethod = "gumbel", run: Any = _draw, **options: Any) -> Drawn:
    """Draws for rows whose prompts were `SEEN` and whose answers have `COUNT` tokens."""
    logits = jnp.asarray(logits, jnp.float32)
    rows, vocab = logits.shape
    settings = per_row(SamplingSettings(**options), rows, room=64)
    tokens = np.tile(np.asarray(SEEN, np.int32), (rows, 1))
    words = _mark_words(settings, tokens, np.ones_like(tokens, bool), vocab=vocab)
    return jax.device_get(run(logits, keys, words, np.full(rows, COUNT, np.int32), settings, method=method))


def traced_anew() -> Any:
    """`draw`, compiled with what is patched now."""
    return jax.jit(functools.partial(draw), static_argnames="method")


@functools.cache
def drawn(method: DrawMethod, name: str) -> Drawn:
    options, _ = CASES[name]
    return draw_rows(np.tile(LOGITS, (DRAWS, 1)), jax.random.split(jax.random.key(7), DRAWS), method, **options)


def penalised(penalty: float) -> np.ndarray:
    seen = np.isin(np.arange(5), SEEN)
    return np.exp(np.where(seen, np.where(LOGITS < 0, LOGITS * penalty, LOGITS / penalty), LOGITS))


CASES: dict[str, tuple[dict[str, Any], np.ndarray]] = {
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
    "a_third_of_the_best": ({"min_p": 0.33}, PROBABILITIES * [0, 1, 1, 1, 0]),
    "cold_then_a_third_of_the_best": ({"temperature": 0.5, "min_p": 0.33}, PROBABILITIES**2 * [0, 1, 0, 1, 0]),
    "penalty": ({"repetition_penalty": 1.5}, penalised(1.5)),
    "bonus": ({"repetition_penalty": 0.7}, penalised(0.7)),
    "forbidden": ({"forbidden_ids": [4, 1]}, PROBABILITIES * [1, 0, 1, 1, 0]),
    "too_short_to_end": ({"eos_ids": [3, 0], "min_new_tokens": COUNT + 1}, PROBABILITIES * [0, 1, 1, 0, 1]),
    "long_enough_to_end": ({"eos_ids": [3, 0], "min_new_tokens": COUNT}, PROBABILITIES),
}
each_case = pytest.mark.parametrize("name", CASES)
each_method = pytest.mark.parametrize("method", METHODS)


@each_method
@each_case
def test_draws_follow_the_distribution(method: DrawMethod, name: str):
    weights = CASES[name][1]
    counts, expected = np.bincount(drawn(method, name).tokens, minlength=5), DRAWS * weights / weights.sum()
    possible = expected > 0
    assert not counts[~possible].any()
    degrees = int(possible.sum()) - 1
    statistic = np.sum((counts - expected)[possible] ** 2 / expected[possible])
    assert statistic < CHI_SQUARE_99_9[degrees] if degrees else statistic == 0


@each_method
@each_case
def test_log_probabilities_are_of_the_full_softmax_and_of_what_was_drawn_from(method: DrawMethod, name: str):
    weights = CASES[name][1]
    tokens, logprobs, sampling_logprobs = drawn(method, name)
    np.testing.assert_allclose(logprobs, np.log(PROBABILITIES)[tokens], rtol=1e-5)
    np.testing.assert_allclose(sampling_logprobs, np.log((weights / weights.sum())[tokens]), atol=1e-5)


@each_method
def test_draws_of_a_large_vocabulary_follow_the_distribution(method: DrawMethod):
    weights = np.arange(1.0, 601.0)  # more than two blocks of words, the last one of them not full
    tokens = draw_rows(
        np.tile(np.log(weights), (12_000, 1)), jax.random.split(jax.random.key(8), 12_000), method
    ).tokens
    counts = np.bincount(np.asarray(tokens) // 40, minlength=15)
    expected = 12_000 * weights.reshape(15, 40).sum(axis=1) / weights.sum()
    assert np.sum((counts - expected) ** 2 / expected) < 36.12  # 99.9 % of chi-square with 14 degrees of freedom


@each_method
def test_temperature_0_and_top_1_take_the_most_likely_token(method: DrawMethod):
    logits = 0.1 * jax.random.normal(jax.random.key(1), (400, 300))
    keys = jax.random.split(jax.random.key(2), 400)
    for options in (
        {"temperature": 0.0},
        {"top_k": 1},
        {"top_p": 1e-6},
        {"temperature": 0.0, "top_k": 3},
        {"min_p": 1},
    ):
        tokens, logprobs, sampling_logprobs = draw_rows(logits, keys, method, **options)
        np.testing.assert_array_equal(tokens, jnp.argmax(logits, axis=1))
        np.testing.assert_allclose(logprobs, jnp.max(jax.nn.log_softmax(logits), axis=1), rtol=1e-5)
        np.testing.assert_allclose(sampling_logprobs, 0.0, atol=1e-6)


@each_method
def test_greedy_rows_tell_logits_apart_that_differ_in_the_last_bit(method: DrawMethod):
    rng = np.random.default_rng(0)
    level = rng.choice([-40.0, -1.5, 1e-3, 7.3, 90.0], 400).astype(np.float32)
    best = rng.integers(0, 300, 400)
    logits = np.tile(level[:, None], (1, 300))
    logits[np.arange(400), best] = np.nextafter(level, np.float32(np.inf))
    heat = np.where(np.arange(400) == 399, 1.0, 0.0)  # once with a row that is not greedy, once without
    for temperature in (0.0, heat):
        tokens = draw_rows(logits, jax.random.split(jax.random.key(3), 400), method, temperature=temperature).tokens
        np.testing.assert_array_equal(tokens[:399], best[:399])


@each_method
def test_greedy_rows_take_the_first_of_equal_words_and_heed_what_is_forbidden(method: DrawMethod):
    keys = jax.random.split(jax.random.key(3), 2)
    logits = np.asarray([[0.0, 2.0, 2.0, 3.0], [0.0, 2.5, 2.0, 1.0]])
    drawn = draw_rows(logits, keys, method, temperature=0.0, forbidden_ids=[[3], [-1]], repetition_penalty=[1.0, 2.0])
    np.testing.assert_array_equal(drawn.tokens, [1, 2])
    np.testing.assert_array_equal(drawn.sampling_logprobs, [0.0, 0.0])


@each_method
def test_each_row_has_its_own_settings(method: DrawMethod):
    each = [
        {},
        {"temperature": 0.0},
        {"top_k": 2},
        {"temperature": 0.5, "top_p": 0.8},
        {"min_p": 0.5},
        {"repetition_penalty": 1.5},
        {"forbidden_ids": [1]},
        {"eos_ids": [1, 3], "min_new_tokens": 9},
    ]
    keys = jax.random.split(jax.random.key(3), len(each))
    alone = [per_row(SamplingSettings(**options), 1, room=64) for options in each]
    settings = jax.tree.map(lambda *rows: np.concatenate(rows), *alone)
    fields = {field: getattr(settings, field) for field in SamplingSettings.__dataclass_fields__}
    together = draw_rows(np.tile(LOGITS, (len(each), 1)), keys, method, **fields)
    for row, options in enumerate(each):
        one = draw_rows(LOGITS[None], keys[row : row + 1], method, **options)
        assert together.tokens[row] == one.tokens[0]
        np.testing.assert_allclose([x[row] for x in together[1:]], [x[0] for x in one[1:]], atol=1e-6)


@each_method
def test_padded_columns_of_the_vocabulary_are_never_drawn(method: DrawMethod):
    padded = np.concatenate([np.zeros((400, 2)), np.full((400, 298), -np.inf)], axis=1)
    keys = jax.random.split(jax.random.key(4), 400)
    for options in ({}, {"temperature": 5.0}, {"top_k": 4}, {"top_p": 0.99}, {"temperature": 0.0}, {"top_k": 400}):
        tokens, logprobs, sampling_logprobs = draw_rows(padded, keys, method, **options)
        assert tokens.max() <= 1
        np.testing.assert_allclose(logprobs, np.log(0.5), rtol=1e-5)
        assert np.isfinite(sampling_logprobs).all()


@each_method
def test_a_draw_depends_on_its_own_key_and_row_alone(method: DrawMethod):
    keys = jax.random.split(jax.random.key(5), 400)
    logits = jax.random.normal(jax.random.key(6), (400, 300))
    first = draw_rows(logits, keys, method).tokens
    np.testing.assert_array_equal(draw_rows(logits[::-1], keys[::-1], method).tokens[::-1], first)
    neighbours = {"top_k": np.arange(400) % 2, "temperature": np.where(np.arange(400) % 4 == 1, 0.0, 1.0)}
    np.testing.assert_array_equal(draw_rows(logits, keys, method, **neighbours).tokens[::2], first[::2])
    np.testing.assert_array_equal(draw_rows(logits[:7], keys[:7], method).tokens, first[:7])
    assert (draw_rows(logits, keys[::-1], method).tokens != first).mean() > 0.9


@each_method
def test_no_value_of_a_setting_recompiles_anything(method: DrawMethod):
    chex.clear_trace_counter()
    run = jax.jit(chex.assert_max_traces(draw, n=1), static_argnames="method")
    logits, keys = jnp.zeros((2, 20)), jax.random.split(jax.random.key(0), 2)
    for options in (
        {},
        {"temperature": 0.0},
        {"temperature": [0.5, 2], "top_k": 5, "top_p": 0.9, "min_p": 0.1},
        {"repetition_penalty": 1.5, "eos_ids": [1, 2, 3], "forbidden_ids": np.asarray([[4, 5], [6, -1]])},
        {"min_new_tokens": 2, "max_new_tokens": [3, 4], "eos_ids": [7]},
    ):
        draw_rows(logits, keys, method, run, **options)
        draw_rows(logits, keys[::-1], method, run, **options)


@pytest.mark.parametrize("uniform", [0.0, 0.25, 0.5, 1.0])
def test_no_rounding_makes_the_cumulative_draw_take_an_impossible_word(uniform: float, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(jax.random, "uniform", lambda key: jnp.float32(uniform))
    rng = np.random.default_rng(9)
    logits = rng.normal(0.0, 3.0, (100, 2000))
    logits[:, :300] = logits[:, 1000:1600] = logits[:, 1900:] = -np.inf
    logits[rng.random(logits.shape) < 0.5] = -np.inf
    drawn = draw_rows(
        logits,
        jax.random.split(jax.random.key(0), 100),
        "cumulative",
        jax.jit(functools.partial(draw), static_argnames="method"),
    )
    assert np.isfinite(drawn.logprobs).all()
    if uniform in (0.0, 1.0):
        possible = np.isfinite(logits)
        ends = np.argmax(possible, axis=1), 1999 - np.argmax(possible[:, ::-1], axis=1)
        np.testing.assert_array_equal(drawn.tokens, ends[int(uniform)])


@pytest.mark.parametrize("bits", [0, 1, 2**31, 2**32 - 1])
def test_noise_is_finite_at_its_extremes(bits: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(jax.random, "bits", lambda key, shape, dtype: jnp.full(shape, bits, dtype))
    logits = np.asarray([[-np.inf, 0.0, -60.0, 1.0, -np.inf]])
    drawn = draw_rows(
        logits,
        jax.random.split(jax.random.key(0), 1),
        "gumbel",
        jax.jit(functools.partial(draw), static_argnames="method"),
    )
    assert drawn.tokens.tolist() == [3]  # all words have the same noise


@each_method
def test_a_row_without_a_word_draws_the_first_and_says_so(method: DrawMethod):
    keys = jax.random.split(jax.random.key(0), 2)
    drawn = draw_rows(np.zeros((2, 3)), keys, method, forbidden_ids=[[0, 1, 2], [0, 1, -1]], top_p=0.5)
    np.testing.assert_array_equal(drawn.tokens, [0, 2])
    np.testing.assert_allclose(drawn.logprobs, np.log(1 / 3), rtol=1e-6)
    np.testing.assert_array_equal(drawn.sampling_logprobs, [-np.inf, 0.0])


@each_method
def test_logits_that_are_no_numbers_show_in_the_log_probability_of_their_row_alone(method: DrawMethod):
    keys = jax.random.split(jax.random.key(0), 2)
    drawn = draw_rows([[0.0, np.nan, 1.0], [0.0, -np.inf, -np.inf]], keys, method, top_k=2, top_p=0.9)
    assert np.isnan(drawn.logprobs[0]) and 0 <= drawn.tokens[0] < 3
    assert drawn.tokens[1] == 0 and drawn.logprobs[1] == 0.0
