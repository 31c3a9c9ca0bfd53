import numpy as np
import pytest

from jaxrlhf.generation.prompts import pad_prompts


def test_padding_is_on_the_left_and_rows_have_numbers():
    batch = pad_prompts([[5, 6, 7], [], [8]])
    np.testing.assert_array_equal(batch.tokens, [[5, 6, 7], [0, 0, 0], [0, 0, 8]])
    np.testing.assert_array_equal(batch.segment_ids, [[1, 1, 1], [0, 0, 0], [0, 0, 1]])
    np.testing.assert_array_equal(batch.row_ids, [0, 1, 2])


def test_width_and_row_ids_can_be_given():
    batch = pad_prompts([[5], [6, 7]], width=4, row_ids=[9, 3])
    np.testing.assert_array_equal(batch.tokens, [[0, 0, 0, 5], [0, 0, 6, 7]])
    np.testing.assert_array_equal(batch.row_ids, [9, 3])
    assert pad_prompts([[]]).tokens.shape == (1, 1)


@pytest.mark.parametrize("prompts, options, message", [
    ([], {}, "there are no prompts"), ([[1, 2, 3]], {"width": 2}, "3 tokens and width=2"),
    ([[1], [2]], {"row_ids": [0]}, "1 row_ids for 2 prompts"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(prompts: list, options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        pad_prompts(prompts, **options)
