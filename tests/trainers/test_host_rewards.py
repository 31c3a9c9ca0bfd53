"""What Python rewards get to see, and where their scores go."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jaxrlhf.data.config import DataConfig
from jaxrlhf.data.indexing import build_index
from jaxrlhf.demo.tokenizer import build_tokenizer
from jaxrlhf.sharding.mesh import make_mesh
from jaxrlhf.sharding.place import local_rows
from jaxrlhf.trainers.host_rewards import read_answers
from jaxrlhf.types import Samples

TOKENIZER = build_tokenizer()
WORDS = TOKENIZER("the room was clean", add_special_tokens=False)["input_ids"]
INDEX = build_index("prompt", [[{"prompt": "a", "n": 1}, {"prompt": "b", "n": 2}]], TOKENIZER, DataConfig())
OWNERS = np.asarray([1, 0, -1, -1])  # of two answers each; the last prompts are padding


def samples(stop: int) -> Samples:
    tokens = np.zeros((8, 3), np.int32)
    tokens[:, 0], tokens[:, 1], tokens[:4, 2] = WORDS[0], WORDS[1], stop
    tokens[1, 1] = WORDS[2]
    lengths = np.asarray([3, 3, 3, 3, 2, 0, 0, 0])
    lengths[3] = 2
    mask = np.arange(3)[None, :] < lengths[:, None]
    zeros = np.zeros((8, 3), np.float32)
    ended = np.asarray([True, True, True, False, False, True, True, True])
    return Samples(tokens=tokens, mask=mask, terminated=ended, logprobs=zeros, sampling_logprobs=zeros)


def on_devices(value: Samples) -> Samples:
    return jax.tree.map(jnp.asarray, value)


def test_answers_stand_beside_their_own_prompts_and_columns():
    found = read_answers(on_devices(samples(TOKENIZER.eos_token_id)), INDEX, OWNERS, 2, TOKENIZER)
    assert found.prompts == ["b", "b", "a", "a"] and found.columns == {"n": [2, 2, 1, 1]}
    assert [text.split() for text in found.completions] == [
        ["the", "room"],
        ["the", "was"],
        ["the", "room"],
        ["the", "room"],
    ]


def test_a_stop_token_that_is_a_word_is_no_part_of_the_answer():
    stopped = read_answers(on_devices(samples(WORDS[3])), INDEX, OWNERS, 2, TOKENIZER)
    assert [text.split() for text in stopped.completions][0] == ["the", "room"]


def test_scores_go_to_the_rows_they_are_of():
    found = read_answers(on_devices(samples(TOKENIZER.eos_token_id)), INDEX, OWNERS, 2, TOKENIZER)

    def numbered(prompts, completions, n):
        return [10.0 * number + place for place, number in enumerate(n)]

    scores = local_rows(found.scores({"numbered": numbered}, make_mesh())["numbered"])
    np.testing.assert_array_equal(scores, [20.0, 21.0, 12.0, 13.0, np.nan, np.nan, np.nan, np.nan])
    moved = dataclasses.replace(found, real=np.asarray([0, 2, 5, 7]))
    scores = local_rows(moved.scores({"numbered": numbered}, make_mesh())["numbered"])
    np.testing.assert_array_equal(scores[[0, 2, 5, 7]], [20.0, 21.0, 12.0, 13.0])
