import jax
import numpy as np
import pytest

from jaxrlhf.generation.sampler import Sampler
from jaxrlhf.generation.settings import SamplingSettings
from tests.fakes import counting_model, prompt_batch

COUNTING, PARAMS = counting_model()
ENDING = SamplingSettings(eos_ids=(9,))


def heard(prompts, *, length: int = 8, answers: int = 1, keep=lambda row, tokens: None, **options):
    """What a listener hears, by row, and the answers."""
    said: dict[int, list[list[int]]] = {}

    def listen(row: int, tokens: np.ndarray) -> int | None:
        said.setdefault(row, []).append(tokens.tolist())
        return keep(row, tokens)

    sample = Sampler(COUNTING, max_new_tokens=length, answers=answers, **options)
    samples = sample(PARAMS, prompt_batch(prompts, 3), jax.random.key(0), ENDING, listen=listen)
    return said, samples


@pytest.mark.parametrize("slots", [None, 1])
def test_a_listener_hears_answers_as_they_grow_and_nothing_twice(slots: int | None):
    said, _ = heard([[3], [7], []], chunk=2, slots=slots)
    assert said[0] == [[4, 5], [4, 5, 6, 7], [4, 5, 6, 7, 8, 9]]
    assert said[1] == [[8, 9]]
    assert set(said) == {0, 1}


@pytest.mark.parametrize("slots", [None, 2])
def test_a_listener_ends_answers_at_the_token_it_says(slots: int | None):
    def keep(row: int, tokens: np.ndarray) -> int | None:
        return {0: 2, 3: 4}.get(row) if len(tokens) >= 4 else None

    said, samples = heard([[1], [2]], answers=2, chunk=4, keep=keep, slots=slots)
    np.testing.assert_array_equal(samples.mask.sum(axis=1), [2, 8, 7, 4])
    assert samples.terminated.all()
    np.testing.assert_array_equal(samples.tokens[0], [2, 3, 0, 0, 0, 0, 0, 0])
    assert not samples.logprobs[0, 2:].any()
    assert len(said[0]) == len(said[3]) == 1


def test_a_slot_whose_answer_a_listener_ended_takes_the_next_request():
    said, samples = heard([[1], [2], [3]], chunk=2, slots=1, keep=lambda row, tokens: 1 if row == 0 else None)
    assert said[0] == [[2, 3]] and said[1][0] == [3, 4]
    np.testing.assert_array_equal(samples.tokens[:, :2], [[2, 0], [3, 4], [4, 5]])


@pytest.mark.parametrize("kept", [0, 3, -1])
def test_a_listener_cannot_keep_what_there_is_not(kept: int):
    with pytest.raises(ValueError, match=f"keeps {kept} tokens of an answer of 2; 1 to 2 can be kept"):
        heard([[1]], chunk=2, keep=lambda row, tokens: kept)
