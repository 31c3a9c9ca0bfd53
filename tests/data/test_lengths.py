import numpy as np
import pytest

from jaxrlhf.data.config import DataConfig
from jaxrlhf.data.encoder import Encoded
from jaxrlhf.data.lengths import fit, pack

BOS = 1


def _answer(prompt, completion):
    """Ids that say where they stand: the prompt counts from 10, the completion from `completion[0]`."""
    ids = [BOS, *range(10, 10 + prompt), *completion]
    return Encoded(np.array(ids, np.int32), np.arange(len(ids)) > prompt, prompt + 1)


def _fit(answers, bos=BOS, **fields):
    fitted = fit(answers, DataConfig(**fields), bos)
    return fitted if isinstance(fitted, str) else [(one.ids.tolist(), one.mask.tolist()) for one in fitted]


def test_what_fits_stays():
    assert _fit([_answer(1, [20, 21])], max_length=4) == [([1, 10, 20, 21], [False, False, True, True])]


def test_keep_start_cuts_the_end():
    assert _fit([_answer(1, [20, 21, 22])], max_length=4) == [([1, 10, 20, 21], [False, False, True, True])]


def test_keep_end_cuts_the_prompt_and_keeps_bos():
    fitted = _fit([_answer(3, [20, 21])], max_length=5, truncation="keep_end")
    assert fitted == [([1, 11, 12, 20, 21], [False, False, False, True, True])]


def test_keep_end_without_bos_cuts_the_first_token():
    fitted = _fit([_answer(3, [20, 21])], bos=None, max_length=5, truncation="keep_end")
    assert fitted == [([10, 11, 12, 20, 21], [False, False, False, True, True])]


def test_keep_end_cuts_the_prompt_of_both_answers_alike():
    short, long = _fit([_answer(3, [20]), _answer(3, [30, 31, 32])], max_length=5, truncation="keep_end")
    assert short[0] == [1, 12, 20]
    assert long[0] == [1, 12, 30, 31, 32]


def test_keep_end_cuts_the_answer_once_the_prompt_is_gone():
    ((ids, mask),) = _fit([_answer(1, [20, 21, 22, 23])], max_length=4, truncation="keep_end")
    assert (ids, mask) == ([1, 21, 22, 23], [False, True, True, True])


def test_keep_end_never_makes_the_first_token_a_target():
    text = Encoded(np.arange(20, 26, dtype=np.int32), np.arange(6) > 0, 0)
    ((ids, mask),) = _fit([text], bos=None, max_length=4, truncation="keep_end")
    assert (ids, mask) == ([22, 23, 24, 25], [False, True, True, True])


@pytest.mark.parametrize(
    ("answers", "fields", "reason"),
    [
        ([_answer(4, [20])], {"max_length": 5}, "long_prompt"),
        ([_answer(4, [20])], {"max_length": 5, "truncation": "keep_end"}, "long_prompt"),
        ([_answer(1, [20, 21, 22])], {"max_length": 4, "truncation": "drop"}, "long"),
        ([_answer(1, [20, 21, 22]), _answer(1, [20, 21, 23])], {"max_length": 4}, "identical"),
        ([_answer(1, [])], {"max_length": 4}, "untrained"),
    ],
)
def test_what_cannot_be_learnt_from_is_dropped_with_its_reason(answers, fields, reason):
    assert _fit(answers, **fields) == reason


def test_packing_fills_bins_without_overflow_or_loss():
    lengths = np.random.default_rng(0).integers(1, 60, 300)
    bins = pack(lengths, 64)
    assert sorted(np.concatenate(bins).tolist()) == list(range(300))
    fill = [lengths[items].sum() for items in bins]
    assert max(fill) <= 64
    assert len(bins) <= 1.05 * lengths.sum() / 64 + 1


def test_packing_takes_the_fullest_bin_with_room():
    assert [items.tolist() for items in pack(np.array([3, 6, 5, 2, 4]), 10)] == [[1, 4], [0, 2, 3]]
