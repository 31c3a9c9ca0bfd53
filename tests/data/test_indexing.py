import dataclasses
import json

import numpy as np
import pytest

from jaxrlhf.data.config import DataConfig, DatasetConfig
from jaxrlhf.data.indexing import build_index
from tests.data.tokenizers import byte_level

EOS = byte_level().eos_token_id
PAIRS = [
    {"prompt": "xyz", "chosen": "defg", "rejected": "hi", "margin": 2},
    {"prompt": "j", "chosen": "k", "rejected": "l"},
]

LABELLED = [{"prompt": "xyz", "completion": "de", "label": True}, {"prompt": "j", "completion": "k", "label": False}]


def _build(kind, rows, tokenizer=None, **fields):
    return build_index(kind, [rows], tokenizer or byte_level(), DataConfig(**fields))


def _left_out(report):
    names = ("rejected", "ties_dropped", "blank_answers_dropped", "dropped_long_prompt", "dropped_long")
    return sum(getattr(report, name) for name in (*names, "dropped_untrained", "dropped_identical"))


def test_sequences_stand_one_after_the_other():
    index = _build("sft", [{"text": "xyz"}, {"text": "u"}])
    assert index.offsets.tolist() == [0, 4, 6]
    assert index.groups.tolist() == [0, 1, 2]
    ids, mask = index.sequence(1)
    assert (ids[-1], mask.tolist()) == (EOS, [False, True])
    assert (index.ids.dtype, index.mask.dtype, index.offsets.dtype) == (np.int32, bool, np.int64)


def test_pairs_are_groups_of_two_with_margins():
    index = _build("preference", PAIRS)
    assert index.groups.tolist() == [0, 2, 4]
    assert index.ranks.tolist() == [1, 2, 1, 2]
    assert index.margins.tolist() == [2.0, 0.0]
    np.testing.assert_array_equal(index.sequence(0)[0][:3], index.sequence(1)[0][:3])


def test_single_answers_keep_their_labels():
    index = _build("unpaired", LABELLED)
    assert index.groups.tolist() == [0, 1, 2]
    assert (index.desirable.tolist(), index.desirable.dtype) == ([True, False], bool)
    assert _build("preference", PAIRS).desirable.tolist() == [True, True]


@pytest.mark.parametrize(("label", "message"), [(True, "label true; add some of false"), (False, "label false; add")])
def test_answers_of_one_label_alone_are_refused(label, message):
    rows = [row | {"label": label} for row in LABELLED]
    with pytest.raises(ValueError, match=rf"(?s)all examples have the {message}.*2 examples of 2 rows"):
        _build("unpaired", rows)


def test_the_labels_of_all_data_sets_are_counted_together():
    index = build_index("unpaired", [LABELLED[:1], LABELLED[1:]], byte_level(), DataConfig())
    assert index.desirable.tolist() == [True, False]


def test_a_whole_answer_ends_with_eos_and_a_cut_one_does_not():
    index = _build("sft", [{"text": "xyz"}, {"text": "xyzuvw"}], max_length=4)
    assert index.sequence(0)[0][-1] == EOS
    assert EOS not in index.sequence(1)[0]
    assert index.report.truncated == 1


def test_answers_end_with_eos_where_they_ended_by_themselves():
    row = {"prompt": "a", "completion": "x"}
    index = _build("sft", [row, row | {"terminated": False}, row | {"terminated": True}])
    assert [index.sequence(number)[0][-1] == EOS for number in range(3)] == [True, False, True]
    ranked = {"prompt": "a", "completions": ["b", "c", "d"], "ranks": [3, 1, 2], "terminated": [True, False, True]}
    index = _build("ranked", [ranked])
    assert [index.sequence(number)[0][-1] == EOS for number in range(3)] == [True, False, True]
    assert index.report.extra_columns == ()


def test_over_long_prompts_are_dropped_and_counted():
    rows = [{"prompt": "abcdef", "completion": "x"}, {"prompt": "u", "completion": "v"}]
    index = _build("sft", rows, max_length=5)
    assert (index.report.kept, index.report.dropped_long_prompt) == (1, 1)
    prompts = [{"prompt": "uvwxy"}, {"prompt": "uvw"}, {"prompt": "uvwx"}]
    assert _build("prompt", prompts, max_length=5).report.dropped_long_prompt == 1
    assert _build("prompt", prompts, max_length=5, max_prompt_length=3).report.dropped_long_prompt == 2


def test_pairs_equal_once_cut_are_dropped_and_counted():
    rows = [{"prompt": "u", "chosen": "vwxy", "rejected": "vwxz"}, {"prompt": "u", "chosen": "v", "rejected": "w"}]
    index = _build("preference", rows, max_length=4)
    assert (index.report.kept, index.report.dropped_identical) == (1, 1)


def test_every_row_is_accounted_for():
    rows = [
        {"prompt": "u", "response1": "v", "response2": "w", "label": 1},
        {"prompt": "u", "response1": "v", "response2": "w", "label": 0},
        {"prompt": "u", "response1": "v", "response2": "", "label": 2},
        {"prompt": "u" * 100, "response1": "v", "response2": "w", "label": 2},
    ]
    report = _build("preference", rows, chat_template="hh", max_length=50).report
    assert (report.ties_dropped, report.blank_answers_dropped, report.dropped_long_prompt) == (1, 1, 1)
    assert report.read + report.added == report.kept + _left_out(report)


def test_nothing_left_is_an_error_with_the_counts():
    with pytest.raises(ValueError, match=r"(?s)left out: 1 with too long a prompt.*no examples are left"):
        _build("sft", [{"prompt": "abcdef", "completion": "x"}], max_length=4)


def test_bad_rows_stop_the_run_or_are_skipped(tmp_path):
    rows = [{"text": "x"}] * 30 + [{"text": ""}]
    with pytest.raises(ValueError, match=r"row 31: field 'text' is empty.*\n1 bad rows of 31"):
        _build("sft", rows)
    config = DataConfig(bad_rows="skip")
    index = build_index("sft", [rows], byte_level(), config, rejects=tmp_path / "rejects.jsonl")
    assert (index.report.kept, index.report.rejected) == (30, 1)
    assert json.loads((tmp_path / "rejects.jsonl").read_text())["where"] == "row 31"


def test_a_conversation_without_template_stops_at_the_first_row(tmp_path):
    path = tmp_path / "chats.jsonl"
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    path.write_text(json.dumps(row) + "\nnot JSON\n")
    with pytest.raises(ValueError, match="chats.jsonl:1: the row is a conversation"):
        build_index("sft", [DatasetConfig(path=str(path))], byte_level(), DataConfig())


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        ("preference", {"packing": True}, "packing=true works for SFT only, not for DPO and reward models; remove it"),
        ("ranked", {"completion_only": False}, "completion_only=false works for SFT only"),
        ("sft", {"share_prompts": True}, "share_prompts=true works for pairs and rankings only, not for SFT and"),
        ("unpaired", {"share_prompts": False}, "share_prompts=false works for pairs and rankings only, not for KTO"),
        ("prompt", {"share_prompts": False}, "share_prompts=false works for pairs and rankings only"),
        ("sft", {"max_prompt_length": 5}, "max_prompt_length works for prompts only"),
        ("prompt", {"truncation": "drop"}, "truncation=drop has no effect on prompts"),
        ("prompt", {"add_eos": False}, "add_eos=false has no effect on prompts"),
    ],
)
def test_options_without_effect_are_refused(kind, fields, message):
    with pytest.raises(ValueError, match=message):
        _build(kind, [{"text": "x"}], **fields)


def test_rows_naming_special_tokens_are_counted():
    assert _build("sft", [{"text": "a</s>b"}, {"text": "ab"}]).report.special_text == 1


def test_the_same_rows_have_the_same_digest_and_others_another():
    assert _build("preference", PAIRS).digest == _build("preference", PAIRS).digest
    swapped = [row | {"label": not row["label"]} for row in LABELLED]
    assert _build("unpaired", LABELLED).digest != _build("unpaired", swapped).digest


def test_every_data_set_is_packed_by_itself():
    sources = [[{"text": "u"}], [{"text": "v"}]]
    index = build_index("sft", sources, byte_level(), DataConfig(packing=True, max_length=8))
    assert index.bins is not None and [items.tolist() for items in index.bins] == [[0], [1]]
    assert index.source.tolist() == [0, 1]


def test_an_index_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        _build("sft", [{"text": "x"}]).kind = "prompt"
