import jax
import jax.numpy as jnp
import numpy as np

from jaxrlhf.generation.settings import SamplingSettings, per_row
from jaxrlhf.generation.words import ENDS, FORBIDDEN, SEEN, mark_words, marked, see

TOKENS = jnp.asarray([[0, 3, 3, 1], [4, 4, 2, 0]])
THERE = jnp.asarray([[False, True, True, True], [False, False, False, True]])
_mark_words = jax.jit(mark_words, static_argnames="vocab")


def table(**options) -> np.ndarray:
    return np.asarray(_mark_words(per_row(SamplingSettings(**options), 2, room=8), TOKENS, THERE, vocab=5))


def test_nothing_is_marked_without_settings():
    np.testing.assert_array_equal(table(), np.zeros((2, 5)))
    assert table().dtype == np.uint8


def test_ids_are_marked_in_the_rows_that_they_are_for():
    words = table(eos_ids=[4, 2, 4], forbidden_ids=[[0, 2], [1, -1]])
    np.testing.assert_array_equal(words, [[FORBIDDEN, 0, FORBIDDEN | ENDS, 0, ENDS], [0, FORBIDDEN, ENDS, 0, ENDS]])


def test_ids_beyond_the_vocabulary_mark_nothing():
    np.testing.assert_array_equal(table(eos_ids=[5, 1000]), np.zeros((2, 5)))


def test_the_words_of_the_prompt_are_seen_where_some_row_has_a_penalty():
    seen = [[0, SEEN, 0, SEEN, 0], [SEEN, 0, 0, 0, 0]]
    np.testing.assert_array_equal(table(repetition_penalty=1.2), seen)
    np.testing.assert_array_equal(table(repetition_penalty=[1.0, 0.8]), seen)
    np.testing.assert_array_equal(table(repetition_penalty=1.0), np.zeros((2, 5)))


def test_seen_words_keep_what_else_is_known_of_them():
    words = table(repetition_penalty=2.0, eos_ids=[3], forbidden_ids=[0])
    np.testing.assert_array_equal(words[:, [0, 3]], [[FORBIDDEN, ENDS | SEEN], [FORBIDDEN | SEEN, ENDS]])


def test_drawn_words_are_seen_where_the_draw_counts():
    words = jnp.asarray(table(eos_ids=[4]))
    after = jax.jit(see)(words, jnp.asarray([4, 4]), jnp.asarray([True, False]))
    np.testing.assert_array_equal(after, [[0, 0, 0, 0, ENDS | SEEN], [0, 0, 0, 0, ENDS]])
    np.testing.assert_array_equal(see(after, jnp.asarray([4, 0]), jnp.asarray([True, True]))[:, 0], [0, SEEN])


def test_a_fact_is_read_beside_others():
    words = jnp.asarray([SEEN, ENDS | SEEN, FORBIDDEN, 0], jnp.uint8)
    np.testing.assert_array_equal(marked(words, SEEN), [True, True, False, False])
    np.testing.assert_array_equal(marked(words, ENDS), [False, True, False, False])
