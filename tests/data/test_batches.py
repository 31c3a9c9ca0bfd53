import dataclasses

import numpy as np
import pytest

from jaxrlhf.data.batches import (
    Width,
    choose_width,
    pair_batch,
    plan_widths,
    prompt_batch,
    scored_pair_batch,
    scored_ranked_batch,
    token_batch,
    unpaired_batch,
    with_neighbours,
)
from jaxrlhf.data.config import DataConfig
from jaxrlhf.data.indexing import build_index
from tests.data.indices import make_index
from tests.data.tokenizers import byte_level

THREE = make_index("sft", [([5, 6, 7, 8], 2), ([9, 10], 1), ([11, 12, 13], 1)])
PAIR = make_index("preference", [([5, 6, 7], 1), ([5, 8], 1)], groups=[0, 2], ranks=[1, 2], margins=[1.5])

UNPAIRED = make_index(
    "unpaired", [([5, 6, 7, 8], 2), ([9, 10], 1), ([11, 12, 13, 14], 3)], desirable=[True, False, True]
)


def test_inputs_and_targets_are_shifted_by_one():
    batch = token_batch(THREE, np.array([0, 1]), Width(4, None))
    assert batch.tokens.tolist() == [[5, 6, 7, 0], [9, 0, 0, 0]]
    assert batch.targets.tolist() == [[6, 7, 8, 0], [10, 0, 0, 0]]
    assert batch.mask.tolist() == [[False, True, True, False], [True, False, False, False]]
    assert batch.positions.tolist() == [[0, 1, 2, 0], [0, 0, 0, 0]]
    assert batch.segment_ids.tolist() == [[1, 1, 1, 0], [1, 0, 0, 0]]
    assert batch.columns is None


def test_columns_are_where_the_mask_is_true():
    batch = token_batch(THREE, np.array([0, 1]), Width(4, 3))
    assert batch.columns is not None and batch.columns.tolist() == [[1, 2, 4], [0, 4, 4]]


def test_packed_sequences_have_segments_positions_and_no_target_across_the_seam():
    index = dataclasses.replace(THREE, bins=(np.array([0, 1, 2]),), source=np.zeros(1, np.int32))
    batch = token_batch(index, np.array([0]), Width(8, None))
    assert batch.tokens.tolist() == [[5, 6, 7, 9, 11, 12, 0, 0]]
    assert batch.targets.tolist() == [[6, 7, 8, 10, 12, 13, 0, 0]]
    assert batch.segment_ids.tolist() == [[1, 1, 1, 2, 3, 3, 0, 0]]
    assert batch.positions.tolist() == [[0, 1, 2, 0, 0, 1, 0, 0]]
    assert batch.mask.tolist() == [[False, True, True, True, True, True, False, False]]


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


def _lengths_index(lengths, trained=1):
    return make_index("sft", [(np.arange(1, n + 2), n + 1 - trained) for n in lengths])


def test_one_width_holds_the_longest_row():
    assert plan_widths(_lengths_index([3, 9, 33]), "tokens") == (Width(40, 8),)


def test_columns_are_given_up_when_most_would_be_read():
    index = make_index("sft", [(np.arange(1, 34), 9)])  # 32 columns, 24 of them read: not below three quarters
    assert plan_widths(index, "tokens") == (Width(32, None),)
    index = make_index("sft", [(np.arange(1, 42), 17)])  # 40 columns, 24 of them read
    assert plan_widths(index, "tokens") == (Width(40, 24),)


def test_widths_are_quantiles_and_a_batch_takes_the_smallest_that_holds_it():
    index = _lengths_index([3, 5, 20, 22, 60, 62])
    widths = plan_widths(index, "tokens", 3)
    assert [width.tokens for width in widths] == [8, 24, 64]
    assert [choose_width(index, "tokens", widths, np.array(units)).tokens for units in ([0, 1], [1, 3], [4, 0])] == [
        8,
        24,
        64,
    ]
    assert choose_width(index, "tokens", widths, np.array([0, -1])).tokens == 8


def test_a_narrow_width_has_columns_for_its_own_rows():
    index = make_index("sft", [(np.arange(1, 50), 47), (np.arange(1, 202), 101)])
    assert plan_widths(index, "tokens", 2) == (Width(48, 8), Width(200, 104))


def test_packed_rows_are_measured_whole():
    index = dataclasses.replace(THREE, bins=(np.array([0, 2]), np.array([1])), source=np.zeros(2, np.int32))
    assert plan_widths(index, "tokens") == (Width(8, None),)
    assert choose_width(index, "tokens", (Width(4, None), Width(8, None)), np.array([0])).tokens == 8


def test_a_scorer_needs_one_more_column_than_a_predictor():
    index = make_index("preference", [(np.arange(9), 1), (np.arange(9), 1)], groups=[0, 2], ranks=[1, 2])
    assert plan_widths(index, "pairs")[0].tokens == 8
    assert plan_widths(index, "scored_pairs")[0].tokens == 16


def test_an_index_of_another_kind_is_refused():
    with pytest.raises(ValueError, match="'pairs' batches need an index of preference, not of 'sft'"):
        plan_widths(THREE, "pairs")


def test_prompts_have_no_columns_to_read():
    prompts = build_index("prompt", [[{"prompt": "uvw"}]], byte_level(), DataConfig())
    assert plan_widths(prompts, "prompts") == (Width(8, None),)
