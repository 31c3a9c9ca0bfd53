import numpy as np
import pytest

from jaxrlhf.data.prefixes import shared_length, shared_prefix, shared_rows


def answer(ids, read):
    """Ids, of which those from place `read` on are read."""
    return np.array(ids, np.int32), np.arange(len(ids)) >= read


CHOSEN, REJECTED = answer([5, 6, 7, 8, 9], 3), answer([5, 6, 7, 10], 3)


def test_a_prompt_is_held_once_and_its_last_token_by_each_answer():
    batch = shared_rows([[CHOSEN, REJECTED]], 1, answers=2, tokens=6, columns=2)
    assert batch.tokens.tolist() == [[5, 6, 7, 8, 7, 0]]
    assert batch.targets.tolist() == [[6, 7, 8, 9, 10, 0]]
    assert batch.mask.tolist() == [[False, False, True, True, True, False]]
    assert batch.positions.tolist() == [[0, 1, 2, 3, 2, 0]]
    assert batch.segment_ids.tolist() == [[1, 1, 2, 2, 3, 0]]
    assert batch.prefix_ids is not None and batch.prefix_ids.tolist() == [[0, 0, 1, 1, 1, 0]]
    assert batch.columns is not None and batch.columns.tolist() == [[[2, 3], [4, 6]]]


def test_scorers_share_all_that_answers_have_in_common_but_the_last_token():
    last = [(ids, np.arange(len(ids)) == len(ids) - 1) for ids in (np.array([5, 6, 7]), np.array([5, 6, 7, 8]))]
    batch = shared_rows([last], 0, answers=2, tokens=5, columns=1)
    assert batch.tokens.tolist() == [[5, 6, 7, 7, 8]]
    assert batch.positions.tolist() == [[0, 1, 2, 2, 3]]
    assert batch.segment_ids.tolist() == [[1, 1, 2, 3, 3]]
    assert batch.columns is not None and batch.columns.tolist() == [[[2], [4]]]
    assert not batch.targets.any()


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ([CHOSEN, REJECTED], 2),
        ([answer([5, 6, 7, 8], 1), answer([5, 6, 7, 9], 1)], 0),  # a prompt of one token
        ([answer([5, 6, 7, 8], 3), answer([5, 1, 7, 9], 3)], 1),  # the tokenizer merged across the border
        ([answer([5, 6, 7, 8], 3), answer([4, 6, 7, 9], 3)], 0),
        ([answer([5, 6, 7, 8, 9], 2), answer([5, 6, 7, 8, 3], 4)], 1),  # an earlier turn of one is trained
        ([CHOSEN], 2),
    ],
)
def test_what_is_shared_is_common_and_before_what_is_read(answers, expected):
    assert shared_prefix(answers, 1) == expected
    assert shared_length(answers, 1) == expected + sum(len(ids) - 1 - expected for ids, _ in answers)


def test_absent_answers_and_empty_rows_have_no_segment():
    batch = shared_rows([[], [CHOSEN]], 1, answers=2, tokens=4, columns=2)
    assert batch.segment_ids.tolist() == [[0, 0, 0, 0], [1, 1, 2, 2]]
    assert batch.columns is not None and batch.columns.tolist() == [[[4, 4], [4, 4]], [[2, 3], [4, 4]]]
    assert not batch.mask[0].any()
