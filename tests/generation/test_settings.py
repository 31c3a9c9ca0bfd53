import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrlhf.generation.settings import SamplingSettings, per_row


def test_a_number_is_for_all_rows_and_an_array_has_one_for_each():
    full = per_row(SamplingSettings(temperature=0.7, top_k=[5, 0, 9], top_p=jnp.asarray([0.5, 1.0, 0.9])), 3, room=16)
    np.testing.assert_array_equal(full.temperature, np.float32([0.7, 0.7, 0.7]))
    np.testing.assert_array_equal(full.top_k, [5, 0, 9])
    np.testing.assert_array_equal(full.top_p, np.float32([0.5, 1.0, 0.9]))


def test_the_defaults_change_nothing_and_answers_are_as_long_as_there_is_room():
    full = per_row(SamplingSettings(), 2, room=16)
    assert {field.name: getattr(full, field.name)[1].tolist() for field in dataclasses.fields(full)} == {
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "min_new_tokens": 0,
        "max_new_tokens": 16,
        "eos_ids": [-1] * 8,
        "forbidden_ids": [-1] * 8,
    }


@pytest.mark.parametrize("count, width", [(0, 8), (1, 8), (8, 8), (9, 16), (16, 16), (17, 24)])
def test_lists_of_ids_are_as_wide_as_a_multiple_of_8(count: int, width: int):
    full = per_row(SamplingSettings(eos_ids=tuple(range(count))), 2, room=4)
    np.testing.assert_array_equal(full.eos_ids, [[*range(count), *[-1] * (width - count)]] * 2)


def test_rows_have_their_own_ids():
    full = per_row(SamplingSettings(eos_ids=[1, 2], forbidden_ids=np.asarray([[7, -1], [8, 9]])), 2, room=4)
    np.testing.assert_array_equal(full.eos_ids[:, :3], [[1, 2, -1], [1, 2, -1]])
    np.testing.assert_array_equal(full.forbidden_ids[:, :3], [[7, -1, -1], [8, 9, -1]])


def test_shapes_and_dtypes_are_those_of_the_defaults():
    given = SamplingSettings(temperature=1, top_k=np.int64(3), top_p=np.float64(0.9), eos_ids=[5], max_new_tokens=2)
    described = [jax.tree.map(jax.typeof, per_row(settings, 4, room=8)) for settings in (SamplingSettings(), given)]
    assert described[0] == described[1]


def test_settings_are_checked_twice_without_harm():
    full = per_row(SamplingSettings(top_k=3, eos_ids=[5], min_new_tokens=1), 2, room=8)
    again = per_row(full, 2, room=8)
    jax.tree.map(np.testing.assert_array_equal, again, full)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"temperature": -0.5}, r"temperature=-0\.5 must be finite and not negative"),
        ({"temperature": float("nan")}, "temperature=nan must be finite"),
        ({"temperature": float("inf")}, "temperature=inf must be finite"),
        ({"top_k": -1}, "top_k=-1 must not be negative"),
        ({"top_p": 0.0}, r"top_p=0\.0 must be above 0 and at most 1"),
        ({"top_p": [0.9, 1.5]}, r"top_p=1\.5 \(row 1\) must be above 0"),
        ({"min_p": 1.5}, r"min_p=1\.5 must be in \[0, 1\]"),
        ({"min_p": -0.1}, r"min_p=-0\.1 must be in \[0, 1\]"),
        ({"repetition_penalty": 0.0}, r"repetition_penalty=0\.0 must be positive"),
        ({"max_new_tokens": 0}, "max_new_tokens=0 must be positive"),
        (
            {"max_new_tokens": [16, 17]},
            r"max_new_tokens=17 \(row 1\) must be at most 16, what the sampler has room for",
        ),
        ({"min_new_tokens": -1}, r"min_new_tokens=-1 must be in \[0, max_new_tokens\]"),
        ({"min_new_tokens": 5, "max_new_tokens": [5, 4]}, r"min_new_tokens=5 \(row 1\) must be in"),
        ({"min_new_tokens": 17}, "min_new_tokens=17 must be in"),
        ({"eos_ids": [3, -2]}, "eos_ids=-2 is no token id"),
        ({"forbidden_ids": [[-1], [-7]]}, r"forbidden_ids=-7 \(row 1\) is no token id"),
        ({"top_p": [0.5, 0.5, 0.5]}, r"top_p has shape \(3,\); expected one number, or one for each of 2 rows"),
        ({"eos_ids": [[1], [2], [3]]}, r"eos_ids has shape \(3, 1\); expected a list of ids, or \[2, E\]"),
        ({"eos_ids": 3}, r"eos_ids has shape \(\)"),
        ({"top_k": 2**31}, "top_k=2147483648 is out of the range of 32 bits"),
    ],
)
def test_what_is_out_of_range_is_named(options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        per_row(SamplingSettings(**options), 2, room=16)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"top_k": 2.5}, r"top_k=2\.5 must be whole numbers"),
        ({"temperature": "hot"}, "temperature='hot' must be numbers"),
        ({"eos_ids": [1.0]}, r"eos_ids=\[1\.0\] must be whole numbers"),
        ({"eos_ids": "</s>"}, "eos_ids='</s>' must be whole numbers"),
        ({"min_p": None}, "min_p=None must be numbers"),
    ],
)
def test_what_is_no_number_is_named(options: dict, message: str):
    with pytest.raises(TypeError, match=message):
        per_row(SamplingSettings(**options), 2, room=16)


def test_all_that_is_wrong_is_said_at_once():
    with pytest.raises(ValueError, match=r"temperature=-1\.0 .*; top_p=2\.0 "):
        per_row(SamplingSettings(temperature=-1, top_p=2), 2, room=16)
