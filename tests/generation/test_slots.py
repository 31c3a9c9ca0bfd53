import dataclasses

import jax.numpy as jnp
import numpy as np

from jaxrlhf.generation.slots import Answers, as_samples, collect, cut, no_answers

WRITTEN = Answers(
    tokens=jnp.asarray([[5, 6, 7], [8, 9, 9]]),
    logprobs=-jnp.ones((2, 3)),
    sampling_logprobs=-2.0 * jnp.ones((2, 3)),
    count=jnp.asarray([2, 0]),
    terminated=jnp.asarray([False, False]),
)


def test_samples_hold_nothing_after_the_end_of_an_answer():
    samples = as_samples(WRITTEN, jnp.asarray([True, False]))
    np.testing.assert_array_equal(samples.tokens, [[5, 6, 0], [0, 0, 0]])
    np.testing.assert_array_equal(samples.mask, [[1, 1, 0], [0, 0, 0]])
    np.testing.assert_array_equal(samples.logprobs, [[-1, -1, 0], [0, 0, 0]])
    np.testing.assert_array_equal(samples.sampling_logprobs, [[-2, -2, 0], [0, 0, 0]])
    np.testing.assert_array_equal(samples.terminated, [False, True])  # nobody asked for the second


def test_slots_write_to_the_rows_of_their_requests_and_idle_ones_nowhere():
    answers = dataclasses.replace(no_answers(3, 8), count=jnp.asarray([1, 2, 3]))
    result = collect(no_answers(4, 8), jnp.asarray([3, 4, 0]), answers)
    np.testing.assert_array_equal(result.count, [3, 0, 0, 1])


def test_a_cut_ends_some_answers_and_leaves_the_others():
    answers = dataclasses.replace(no_answers(3, 8), count=jnp.asarray([5, 6, 7]))
    going, answers = cut(jnp.ones(3, bool), answers, jnp.asarray([-1, 2, 7]))
    np.testing.assert_array_equal(answers.count, [5, 2, 7])
    np.testing.assert_array_equal(answers.terminated, [False, True, True])
    np.testing.assert_array_equal(going, [True, False, False])
