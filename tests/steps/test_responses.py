import jax.numpy as jnp
import numpy as np

from jaxrlhf.steps.responses import response_batch, scorer_batch, shared_response_batch
from tests.fakes import prompt_batch
from tests.steps.experiences import EOS, MASK, PROMPTS, SAMPLES


def test_prompt_and_answer_become_one_row_that_is_shifted_once():
    batch = response_batch(PROMPTS, SAMPLES)
    np.testing.assert_array_equal(batch.tokens[:2], [[1, 5, 6, 11, 12], [1, 1, 7, 13, EOS]])
    np.testing.assert_array_equal(batch.targets[:2], [[5, 6, 11, 12, EOS], [1, 7, 13, EOS, 0]])
    np.testing.assert_array_equal(batch.mask[:2], [[0, 0, 1, 1, 1], [0, 0, 1, 1, 0]])
    np.testing.assert_array_equal(batch.segment_ids[:2], [[0, 1, 1, 1, 1], [0, 0, 1, 1, 1]])
    np.testing.assert_array_equal(batch.positions[:2], [[0, 0, 1, 2, 3], [0, 0, 0, 1, 2]])
    assert batch.columns is not None
    np.testing.assert_array_equal(jnp.take_along_axis(batch.targets, batch.columns, axis=1), SAMPLES.tokens)
    np.testing.assert_array_equal(jnp.take_along_axis(batch.mask, batch.columns, axis=1), MASK)


def test_a_scorer_reads_the_last_real_token():
    batch = scorer_batch(PROMPTS, SAMPLES)
    np.testing.assert_array_equal(batch.tokens[:2], [[1, 5, 6, 11, 12, EOS], [1, 1, 7, 13, EOS, 0]])
    np.testing.assert_array_equal(batch.tokens[batch.mask], [EOS, EOS, 16])
    np.testing.assert_array_equal(batch.mask.sum(axis=1), [1, 1, 1, 0])  # the last row has no prompt


def test_answers_stand_behind_their_prompt():
    batch = shared_response_batch(prompt_batch([[5, 6], []], 3), SAMPLES)  # the second prompt is padding
    np.testing.assert_array_equal(batch.tokens[0], [1, 5, 6, 11, 12, 6, 13, EOS])
    np.testing.assert_array_equal(batch.targets[0], [5, 6, 11, 12, EOS, 13, EOS, 0])
    np.testing.assert_array_equal(batch.mask[0], [0, 0, 1, 1, 1, 1, 1, 0])
    np.testing.assert_array_equal(batch.segment_ids, [[0, 1, 2, 2, 2, 3, 3, 3], [0] * 8])
    assert batch.prefix_ids is not None and batch.columns is not None
    np.testing.assert_array_equal(batch.prefix_ids, [[0, 0, 1, 1, 1, 1, 1, 1], [0] * 8])
    np.testing.assert_array_equal(batch.positions[0], [0, 0, 1, 2, 3, 1, 2, 3])
    np.testing.assert_array_equal(batch.columns, [[[2, 3, 4], [5, 6, 7]]] * 2)
    np.testing.assert_array_equal(batch.targets[0][batch.columns[0]], SAMPLES.tokens[:2])
    np.testing.assert_array_equal(batch.mask[0][batch.columns[0]], MASK[:2])


def test_a_prompt_of_one_token_leaves_nothing_to_share():
    batch = shared_response_batch(prompt_batch([[7], [8]], 1), SAMPLES)
    np.testing.assert_array_equal(batch.tokens[0], [7, 11, 12, 7, 13, EOS])
    np.testing.assert_array_equal(batch.segment_ids[0], [2, 2, 2, 3, 3, 3])
    np.testing.assert_array_equal(batch.positions[0], [0, 1, 2, 0, 1, 2])
