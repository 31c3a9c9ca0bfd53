import dataclasses

import numpy as np
import pytest

from jaxrlhf.data.batches import (
    pair_batch,
    prompt_batch,
    read_unit,
    scored_pair_batch,
    scored_ranked_batch,
    token_batch,
    unpaired_batch,
    with_neighbours,
)
from jaxrlhf.data.config import DataConfig
from jaxrlhf.data.indexing import build_index
from jaxrlhf.data.token_rows import Width
from jaxrlhf.data.widths import plan_widths
from tests.data.indices import make_index
from tests.data.tokenizers import byte_level

THREE = make_index("sft", [([5, 6, 7, 8], 2), ([9, 10], 1), ([11, 12, 13], 1)])
PAIR = make_index("preference", [([5, 6, 7], 1), ([5, 8], 1)], groups=[0, 2], ranks=[1, 2], margins=[1.5])

UNPAIRED = make_index(
    "unpaired", [([5, 6, 7, 8], 2), ([9, 10], 1), ([11, 12, 13, 14], 3)], desirable=[True, False, True]
)


def test_a_row_holds_a_unit():
    batch = token_batch(THREE, np.array([2, 0]), Width(4, 3))
    assert batch.tokens.tolist() == [[11, 12, 0, 0], [5, 6, 7, 0]]
    assert batch.targets.tolist() == [[12, 13, 0, 0], [6, 7, 8, 0]]
    assert batch.mask.tolist() == [[True, True, False, False], [False, True, True, False]]
    assert batch.columns is not None and batch.columns.tolist() == [[0, 1, 4], [1, 2, 4]]


def test_a_row_holds_all_that_was_packed_into_it():
    index = dataclasses.replace(THREE, bins=(np.array([0, 2]), np.array([1])), source=np.zeros(2, np.int32))
    batch = token_batch(index, np.array([1, 0]), Width(8, None))
    assert batch.tokens.tolist() == [[9, 0, 0, 0, 0, 0, 0, 0], [5, 6, 7, 11, 12, 0, 0, 0]]
    assert batch.segment_ids.tolist() == [[1, 0, 0, 0, 0, 0, 0, 0], [1, 1, 1, 2, 2, 0, 0, 0]]
    assert batch.columns is None


def test_packing_keeps_every_prediction_of_the_unpacked_rows():
    rows = [{"prompt": "u" * n, "completion": "v" * (7 - n)} for n in range(1, 7)]

    def predictions(packing):
        index = build_index("sft", [rows], byte_level(), DataConfig(max_length=20, packing=packing))
        batch = token_batch(index, np.arange(index.units), plan_widths(index, "tokens")[-1])
        found = np.nonzero(batch.mask)
        return sorted(zip(batch.positions[found], batch.tokens[found], batch.targets[found], strict=True))

    assert predictions(True) == predictions(False)


def test_an_empty_row_counts_nowhere():
    batch = token_batch(THREE, np.array([1, -1]), Width(4, 3))
    assert not batch.mask[1].any() and not batch.segment_ids[1].any()
    assert batch.columns is not None and batch.columns[1].tolist() == [4, 4, 4]


def test_pairs_put_chosen_before_rejected():
    batch = pair_batch(PAIR, np.array([0, -1]), Width(3, 2))
    assert batch.answers.tokens[0].tolist() == [[5, 6, 0], [5, 0, 0]]
    assert batch.answers.targets[0].tolist() == [[6, 7, 0], [8, 0, 0]]
    assert batch.answers.columns is not None and batch.answers.columns.shape == (2, 2, 2)
    assert batch.margin.tolist() == [1.5, 0.0]
    assert not batch.answers.segment_ids[1].any()


@pytest.mark.parametrize("count", [2, 3, 5])
def test_no_row_is_its_own_neighbour_and_every_row_is_one_once(count):
    units = 7 + np.arange(count)
    own, neighbours = with_neighbours(units).T
    assert own.tolist() == units.tolist()
    assert sorted(neighbours) == sorted(own) and (neighbours != own).all()


def test_empty_rows_are_nobodys_neighbour():
    assert with_neighbours(np.array([4, -1, 5, 6, -1])).tolist() == [[4, 6], [-1, -1], [5, 4], [6, 5], [-1, -1]]
    assert with_neighbours(np.array([4, -1])).tolist() == [[4, -1], [-1, -1]]  # alone
    assert with_neighbours(np.array([-1, -1])).tolist() == [[-1, -1]] * 2


def test_a_unit_that_comes_twice_is_no_error():
    assert with_neighbours(np.array([4, 4, 5])).tolist() == [[4, 5], [4, 5], [5, 4]]
    assert with_neighbours(np.array([4, 4])).tolist() == [[4, -1], [4, -1]]


def test_mismatched_rows_have_their_own_prompt_and_the_neighbours_answer():
    batch = unpaired_batch(UNPAIRED, with_neighbours(np.arange(3)), Width(4, 3))
    assert batch.answers.tokens.tolist() == [[5, 6, 7, 0], [9, 0, 0, 0], [11, 12, 13, 0]]
    assert batch.desirable.tolist() == [True, False, True]
    rows = batch.mismatched
    assert rows.tokens.tolist() == [[5, 6, 0, 0], [9, 7, 0, 0], [11, 12, 13, 0]]
    assert rows.targets.tolist() == [[6, 14, 0, 0], [7, 8, 0, 0], [12, 13, 10, 0]]
    assert rows.mask.tolist() == [[False, True, False, False], [True, True, False, False], [False, False, True, False]]
    assert rows.columns is not None and rows.columns.tolist() == [[1, 4, 4], [0, 1, 4], [2, 4, 4]]


def test_a_mismatched_answer_that_does_not_fit_loses_its_end():
    index = make_index("unpaired", [([5, 6, 7, 8], 3), ([9, 10, 11, 12], 1)], desirable=[True, False])
    rows = unpaired_batch(index, with_neighbours(np.arange(2)), Width(3, None)).mismatched
    assert rows.tokens.tolist() == [[5, 6, 7], [9, 0, 0]]
    assert rows.targets.tolist() == [[6, 7, 10], [8, 0, 0]]  # of three tokens of the answer one is left
    assert rows.mask.tolist() == [[False, False, True], [True, False, False]]


def test_every_turn_of_a_mismatched_answer_stays_trained():
    turns = dataclasses.replace(UNPAIRED, mask=np.array([0, 0, 1, 1, 0, 1, 0, 1, 0, 1], bool))
    rows = unpaired_batch(turns, np.array([[1, 2]]), Width(4, None)).mismatched
    assert rows.targets.tolist() == [[12, 13, 14, 0]]
    assert rows.mask.tolist() == [[True, False, True, False]]


def test_empty_unpaired_rows_count_nowhere():
    batch = unpaired_batch(UNPAIRED, with_neighbours(np.array([0, -1])), Width(4, 3))
    assert batch.desirable.tolist() == [True, False]
    for rows, there in ((batch.answers, [True, False]), (batch.mismatched, [False, False])):
        assert rows.segment_ids.any(axis=1).tolist() == there
        assert not rows.mask[1].any()


def test_scorers_read_every_token_and_count_at_the_last():
    batch = scored_pair_batch(PAIR, np.array([0]), Width(4, None))
    assert batch.answers.tokens[0].tolist() == [[5, 6, 7, 0], [5, 8, 0, 0]]
    assert batch.answers.mask[0].tolist() == [[False, False, True, False], [False, True, False, False]]
    assert not batch.answers.targets.any()


def test_rankings_are_filled_up_with_absent_answers():
    sequences = [([5, 6], 1), ([5, 7], 1), ([5, 8], 1), ([9, 6], 1), ([9, 7], 1)]
    index = make_index("ranked", sequences, groups=[0, 3, 5], ranks=[2, 1, 2, 1, 2])
    batch = scored_ranked_batch(index, np.array([1, 0]), Width(2, None))
    assert batch.ranks.tolist() == [[1, 2, 0], [2, 1, 2]]
    assert batch.answers.tokens.shape == (2, 3, 2)
    assert batch.answers.mask.sum(axis=-1).tolist() == [[1, 1, 0], [1, 1, 1]]
    assert not batch.answers.segment_ids[0, 2].any()


def test_prompts_end_at_the_same_column():
    index = make_index("prompt", [([5, 6, 7], 3), ([9], 1)])
    batch = prompt_batch(index, np.array([0, 1]), Width(4, None))
    assert batch.tokens.tolist() == [[0, 5, 6, 7], [0, 0, 0, 9]]
    assert batch.segment_ids.tolist() == [[0, 1, 1, 1], [0, 0, 0, 1]]


def test_a_unit_is_read_with_what_is_to_be_imitated_or_where_it_is_scored():
    chosen, rejected = read_unit(PAIR, 0)
    assert (chosen[0].tolist(), chosen[1].tolist()) == ([5, 6, 7], [False, True, True])
    assert (rejected[0].tolist(), rejected[1].tolist()) == ([5, 8], [False, True])
    assert [mask.tolist() for _, mask in read_unit(PAIR, 0, scores=True)] == [[False, False, True], [False, True]]
    assert read_unit(PAIR, -1) == read_unit(PAIR, -1, scores=True) == []
