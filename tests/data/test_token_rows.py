import numpy as np

from jaxrlhf.data.token_rows import Width, blank_rows, read_columns, token_rows, write_sequence


def sequence(ids, read):
    """Ids, of which those from place `read` on are read."""
    return np.array(ids, np.int32), np.arange(len(ids)) >= read


LONG, SHORT, MIDDLE = sequence([5, 6, 7, 8], 2), sequence([9, 10], 1), sequence([11, 12, 13], 1)


def test_inputs_and_targets_are_shifted_by_one():
    batch = token_rows([[LONG], [SHORT]], 1, Width(4, None))
    assert batch.tokens.tolist() == [[5, 6, 7, 0], [9, 0, 0, 0]]
    assert batch.targets.tolist() == [[6, 7, 8, 0], [10, 0, 0, 0]]
    assert batch.mask.tolist() == [[False, True, True, False], [True, False, False, False]]
    assert batch.positions.tolist() == [[0, 1, 2, 0], [0, 0, 0, 0]]
    assert batch.segment_ids.tolist() == [[1, 1, 1, 0], [1, 0, 0, 0]]
    assert batch.columns is None and batch.prefix_ids is None


def test_scorers_read_every_token_and_have_no_targets():
    batch = token_rows([[sequence([5, 6, 7, 8], 3)], [sequence([9, 10], 1)]], 0, Width(5, None))
    assert batch.tokens.tolist() == [[5, 6, 7, 8, 0], [9, 10, 0, 0, 0]]
    assert batch.mask.tolist() == [[False, False, False, True, False], [False, True, False, False, False]]
    assert batch.positions.tolist() == [[0, 1, 2, 3, 0], [0, 1, 0, 0, 0]]
    assert not batch.targets.any()


def test_sequences_of_a_row_have_segments_positions_and_no_target_across_the_seam():
    batch = token_rows([[LONG, SHORT, MIDDLE]], 1, Width(8, None))
    assert batch.tokens.tolist() == [[5, 6, 7, 9, 11, 12, 0, 0]]
    assert batch.targets.tolist() == [[6, 7, 8, 10, 12, 13, 0, 0]]
    assert batch.segment_ids.tolist() == [[1, 1, 1, 2, 3, 3, 0, 0]]
    assert batch.positions.tolist() == [[0, 1, 2, 0, 0, 1, 0, 0]]
    assert batch.mask.tolist() == [[False, True, True, True, True, True, False, False]]


def test_columns_are_where_the_mask_is_true():
    batch = token_rows([[LONG], [SHORT], []], 1, Width(4, 3))
    assert batch.columns is not None and batch.columns.tolist() == [[1, 2, 4], [0, 4, 4], [4, 4, 4]]
    columns = read_columns(np.array([[True, False, True], [False, False, False]]), 2)
    assert (columns.tolist(), columns.dtype) == ([[0, 2], [3, 3]], np.int32)


def test_rows_have_the_types_of_a_batch():
    batch = token_rows([[LONG]], 1, Width(4, 3))
    fields = (batch.tokens, batch.targets, batch.positions, batch.segment_ids, batch.columns)
    assert [x.dtype for x in fields if x is not None] == [np.int32] * 5
    assert batch.mask.dtype == bool


def test_a_sequence_can_start_anywhere_and_go_on_from_a_position():
    row = {name: array[0] for name, array in blank_rows(1, 6).items()}
    assert write_sequence(row, MIDDLE, 1, start=2, segment=3, position=7) == slice(2, 4)
    assert row["tokens"].tolist() == [0, 0, 11, 12, 0, 0]
    assert row["targets"].tolist() == [0, 0, 12, 13, 0, 0]
    assert row["mask"].tolist() == [False, False, True, True, False, False]
    assert row["positions"].tolist() == [0, 0, 7, 8, 0, 0]
    assert row["segment_ids"].tolist() == [0, 0, 3, 3, 0, 0]
