import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrlhf.generation.filters import processed_logits
from jaxrlhf.generation.settings import SamplingSettings, per_row
from jaxrlhf.generation.words import ENDS, FORBIDDEN, SEEN

_processed = jax.jit(processed_logits)


def processed(logits, words=0, count=0, **options) -> np.ndarray:
    logits = jnp.asarray(logits, jnp.float32)
    rows = logits.shape[0]
    words = jnp.asarray(np.broadcast_to(words, logits.shape), jnp.uint8)
    counts = jnp.asarray(np.broadcast_to(count, rows), jnp.int32)
    return np.asarray(_processed(logits, words, counts, per_row(SamplingSettings(**options), rows, room=64)))


def kept(logits, **options) -> np.ndarray:
    return np.isfinite(processed(logits, **options))


def by_sort(logits: np.ndarray, top_k: int, top_p: float, min_p: float) -> np.ndarray:
    """What one row [V] keeps, by sorting it, in float64."""
    logits = logits.astype(np.float64)
    ordered = np.sort(logits)[::-1]
    left = np.where(logits >= ordered[min(top_k, len(logits)) - 1 if top_k else -1], logits, -np.inf)
    chances = np.exp(left - left.max()) / np.exp(left - left.max()).sum()
    order = np.argsort(-chances, kind="stable")
    before = np.cumsum(chances[order]) - chances[order]
    least = chances[order][(before < top_p) | (top_p >= 1.0)].min()
    return (chances >= least) & (chances >= min_p * chances.max()) & (left > -np.inf)


@pytest.mark.parametrize("vocab, padding", [(7, 0), (7, 3), (256, 0), (300, 44), (1000, 24)])
@pytest.mark.parametrize("ties", [False, True], ids=["all_differ", "ties"])
def test_the_kept_words_are_those_of_a_sort(vocab: int, padding: int, ties: bool):
    rng, rows = np.random.default_rng(vocab), 96
    logits = (3.0 * rng.standard_normal((rows, vocab)) - 1.0).astype(np.float32)
    logits = np.round(logits, 1) if ties else logits
    logits[:, vocab - padding :] = -np.inf
    top_k = rng.choice([0, 1, 2, 5, vocab - 1, vocab, 10 * vocab], rows)
    top_p = rng.choice([1e-6, 0.1, 0.5, 0.9, 0.999, 0.999999, 1.0], rows)
    min_p = rng.choice([0.0, 0.0, 1e-3, 0.2], rows)
    found = kept(logits, top_k=top_k, top_p=top_p, min_p=min_p)

    exact = 0
    for row in range(rows):
        # Where the sum of the sorted chances all but equals p, rounding may decide either way.
        fewest, most = (
            by_sort(
                logits[row], top_k[row], min(max(top_p[row] + sign * 1e-6, 1e-9), 1.0), min_p[row] * (1 - sign * 1e-6)
            )
            for sign in (-1, 1)
        )
        assert (found[row] >= fewest).all() and (found[row] <= most).all(), (row, top_k[row], top_p[row], min_p[row])
        exact += bool((fewest == most).all())
    assert exact > 0.8 * rows


def test_a_row_without_settings_keeps_its_logits_whatever_its_neighbours_ask_for():
    logits = np.random.default_rng(0).standard_normal((3, 50))
    together = processed(logits, top_k=[0, 3, 0], top_p=[1.0, 1.0, 0.5], min_p=[0.0, 0.0, 0.1])
    np.testing.assert_array_equal(together[0], processed(logits)[0])
    assert np.isfinite(together).sum(axis=1).tolist()[:2] == [50, 3]


def test_the_logits_are_counted_from_the_best_and_divided_by_the_temperature():
    logits = np.asarray([[1.0, 3.0, -2.0, -np.inf]] * 3)
    expected = [[-2.0, 0.0, -5.0, -np.inf], [-4.0, 0.0, -10.0, -np.inf], [-2.0, 0.0, -5.0, -np.inf]]
    np.testing.assert_allclose(processed(logits, temperature=[1.0, 0.5, 0.0]), expected)


def test_a_temperature_close_to_0_keeps_the_best_word_alone():
    np.testing.assert_array_equal(processed([[-100.0, 300.0, 200.0]], temperature=1e-37), [[-np.inf, 0.0, -np.inf]])


def test_ties_with_the_kth_stay():
    logits = [[1.0, 0.0, 2.0, 1.0, -0.0]]
    assert kept(logits, top_k=1).tolist() == [[False, False, True, False, False]]
    assert kept(logits, top_k=2).tolist() == [[True, False, True, True, False]]
    assert kept(logits, top_k=4).tolist() == [[True, True, True, True, True]]


@pytest.mark.parametrize("distance", [1e-20, 3e-5, 0.7, 1.0, 77.7, 3e30])
def test_words_are_told_apart_by_the_last_bit(distance: float):
    near = np.float32(distance)
    far = np.nextafter(near, np.float32(np.inf))
    logits = -np.asarray([[far, 0.0, near, near, np.nextafter(far, np.float32(np.inf))]])
    assert kept(logits, top_k=2).tolist() == [[False, True, True, True, False]]
    assert kept(logits, top_k=4).tolist() == [[True, True, True, True, False]]


def test_the_word_at_which_the_probability_is_reached_is_kept():
    fifths = -0.01 * np.arange(5.0)[None]  # nearly a fifth each, falling
    for top_p, count in [(0.1, 1), (0.3, 2), (0.5, 3), (0.7, 4), (0.9, 5)]:
        assert kept(fifths, top_p=top_p).tolist() == [[word < count for word in range(5)]]


def test_top_p_keeps_at_least_the_best_word_and_its_ties():
    assert kept([[1.0, 2.0, 0.0]], top_p=1e-30).tolist() == [[False, True, False]]
    assert kept([[2.0, 2.0, 0.0]], top_p=1e-30).tolist() == [[True, True, False]]


def test_top_p_1_keeps_words_too_unlikely_to_change_a_sum():
    assert kept([[0.0, -60.0, -20.0]], top_p=1.0, top_k=3).all()


def test_min_p_is_of_the_most_likely_words_probability():
    logits = np.log([[0.5, 0.3, 0.2]])
    assert kept(logits, min_p=0.39).tolist() == [[True, True, True]]
    assert kept(logits, min_p=0.41).tolist() == [[True, True, False]]
    assert kept(logits, min_p=0.61).tolist() == [[True, False, False]]
    assert kept([[1.0, 1.0, 0.9]], min_p=1.0).tolist() == [[True, True, False]]


@pytest.mark.parametrize("penalty", [1.25, 0.5])
def test_the_repetition_penalty_divides_positive_logits_of_seen_words_and_multiplies_negative_ones(penalty: float):
    logits = [[2.0, 2.0, -2.0, -2.0, 3.0, 0.25, -0.25, 0.0]]
    words = [[SEEN, 0, SEEN, 0, SEEN | ENDS, SEEN, SEEN, SEEN]]
    expected = [[2.0 / penalty, 2.0, -2.0 * penalty, -2.0, 3.0 / penalty, 0.25 / penalty, -0.25 * penalty, 0.0]]
    found = processed(logits, words, repetition_penalty=penalty)
    np.testing.assert_allclose(found, expected - np.max(expected), rtol=1e-6)


def test_the_repetition_penalty_comes_before_the_temperature():
    found = processed([[2.0, 1.0]], [[SEEN, 0]], repetition_penalty=4.0, temperature=0.5)
    np.testing.assert_allclose(found, [[-1.0, 0.0]])


def test_forbidden_words_go_first():
    words = [[0, FORBIDDEN, 0, 0]]
    np.testing.assert_allclose(processed([[1.0, 9.0, 0.0, 0.5]], words, top_k=2), [[0.0, -np.inf, -np.inf, -0.5]])


def test_eos_words_go_while_the_answer_is_too_short():
    found = processed([[0.0, 1.0]] * 4, [[0, ENDS]], count=[0, 1, 2, 0], min_new_tokens=[2, 2, 2, 0])
    np.testing.assert_array_equal(found[:, 1], [-np.inf, -np.inf, 0.0, 0.0])
    np.testing.assert_array_equal(found[:, 0], [0.0, 0.0, -1.0, -1.0])


def test_a_row_whose_words_are_all_forbidden_has_none():
    found = processed([[1.0, 2.0], [1.0, 2.0]], [[FORBIDDEN, FORBIDDEN], [0, 0]], top_k=1, top_p=0.5, min_p=0.1)
    np.testing.assert_array_equal(found, [[-np.inf, -np.inf], [-np.inf, 0.0]])
