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


def test_the_first_rows_are_shown_and_the_best_and_the_worst_of_all():
    found = read_answers(on_devices(samples(TOKENIZER.eos_token_id)), INDEX, OWNERS, 2, TOKENIZER)
    totals = jnp.asarray([1.0, 4.0, np.nan, -2.0, 9.0, 9.0, 9.0, 9.0])  # the last rows are padding
    scores = {"one": totals / 2, "other": jnp.full(8, jnp.nan)}
    rows = found.rows_to_show(scores, totals)
    assert [(row["split"], row["pick"], row["prompt"], row["score"]) for row in rows] == [
        ("train", "first", "b", 1.0),
        ("train", "first", "b", 4.0),
        ("train", "first", "a", None),
        ("train", "first", "a", -2.0),
        ("train", "best", "b", 4.0),
        ("train", "worst", "a", -2.0),
    ]
    assert rows[1]["scores"] == {"one": 2.0, "other": None}
    assert [row["terminated"] for row in rows] == [True, True, True, False, True, False]
    assert rows[4]["completion"] == found.completions[1]


def test_rows_without_scores_have_no_best_and_no_worst():
    found = read_answers(on_devices(samples(TOKENIZER.eos_token_id)), INDEX, OWNERS, 2, TOKENIZER)
    rows = found.rows_to_show({"one": jnp.full(8, jnp.nan)}, jnp.full(8, jnp.nan))
    assert [row["pick"] for row in rows] == ["first"] * 4


def test_one_answer_to_each_prompt_is_shown_of_an_evaluation():
    found = read_answers(on_devices(samples(TOKENIZER.eos_token_id)), INDEX, OWNERS, 2, TOKENIZER)
    totals = jnp.arange(8.0)
    rows = found.prompts_to_show({"one": totals}, totals, 2)
    assert [(row["split"], row["pick"], row["prompt"], row["score"]) for row in rows] == [
        ("eval", "first", "b", 0.0),
        ("eval", "first", "a", 2.0),
    ]


def test_scores_go_to_the_rows_they_are_of():
    found = read_answers(on_devices(samples(TOKENIZER.eos_token_id)), INDEX, OWNERS, 2, TOKENIZER)

    def numbered(prompts, completions, n):
        return [10.0 * number + place for place, number in enumerate(n)]

    scores = local_rows(found.scores({"numbered": numbered}, make_mesh())["numbered"])
    np.testing.assert_array_equal(scores, [20.0, 21.0, 12.0, 13.0, np.nan, np.nan, np.nan, np.nan])
    moved = dataclasses.replace(found, real=np.asarray([0, 2, 5, 7]))
    scores = local_rows(moved.scores({"numbered": numbered}, make_mesh())["numbered"])
    np.testing.assert_array_equal(scores[[0, 2, 5, 7]], [20.0, 21.0, 12.0, 13.0])
