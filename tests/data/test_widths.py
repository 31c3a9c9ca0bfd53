import dataclasses

import numpy as np
import pytest

from jaxrlhf.data.config import DataConfig
from jaxrlhf.data.indexing import build_index
from jaxrlhf.data.token_rows import Width
from jaxrlhf.data.widths import choose_width, plan_widths, row_lengths
from tests.data.indices import make_index
from tests.data.tokenizers import byte_level


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
    index = _lengths_index([3, 1, 2])
    index = dataclasses.replace(index, bins=(np.array([0, 2]), np.array([1])), source=np.zeros(2, np.int32))
    assert plan_widths(index, "tokens") == (Width(8, None),)
    assert choose_width(index, "tokens", (Width(4, None), Width(8, None)), np.array([0])).tokens == 8


def test_a_scorer_needs_one_more_column_than_a_predictor():
    index = make_index("preference", [(np.arange(9), 1), (np.arange(9), 1)], groups=[0, 2], ranks=[1, 2])
    assert plan_widths(index, "pairs")[0].tokens == 8
    assert plan_widths(index, "scored_pairs")[0].tokens == 16


def test_an_index_of_another_kind_is_refused():
    with pytest.raises(ValueError, match="'pairs' batches need an index of preference, not of 'sft'"):
        plan_widths(_lengths_index([3]), "pairs")


def test_prompts_have_no_columns_to_read():
    prompts = build_index("prompt", [[{"prompt": "uvw"}]], byte_level(), DataConfig())
    assert plan_widths(prompts, "prompts") == (Width(8, None),)


def test_a_unit_is_as_long_as_its_longest_row():
    sequences = [(np.arange(9), 4), (np.arange(6), 4), (np.arange(7), 2)]
    index = make_index("ranked", sequences, groups=[0, 2, 3], ranks=[1, 2, 1])
    assert row_lengths(index, "scored_ranked").tolist() == [9, 7]
    assert row_lengths(index, "shared_scored_ranked").tolist() == [5 + 4 + 1, 6 + 1]  # 5 ids are shared, then 6
