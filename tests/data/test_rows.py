import math

import pytest

from jaxrlhf.data.rowlog import RowError
from jaxrlhf.data.rows import check_row

USER = {"role": "user", "content": "Hi"}
ASSISTANT = {"role": "assistant", "content": "Hello"}
SYSTEM = {"role": "system", "content": "Be kind."}
PAIR = {"prompt": "p", "chosen": "c", "rejected": "r"}
LABELLED = {"prompt": "p", "completion": "c", "label": True}
RANKED = {"prompt": "p", "completions": ["a", "b", "c"], "ranks": [1, 2, 3]}


@pytest.mark.parametrize(
    ("kind", "row", "code", "message"),
    [
        ("sft", {"promt": "p", "completion": "c"}, "FIELD_MISSING", "'prompt' is missing .*did you mean 'promt'"),
        ("sft", {"instruction": "p", "completion": "c"}, "FIELD_MISSING", "did you mean 'instruction'"),
        ("sft", {"prompt": None, "completion": "c"}, "FIELD_NULL", "'prompt' is null"),
        ("sft", {"prompt": 3, "completion": "c"}, "FIELD_TYPE", "'prompt' is 3; expected a string"),
        ("sft", {"prompt": "p", "completion": {"a": 1}}, "FIELD_TYPE", "expected a string, or a list of messages"),
        ("sft", {"prompt": "p", "completion": ["c"]}, "FIELD_TYPE", r"completion\[0\] is 'c'; expected {role"),
        ("sft", {"prompt": " \n", "completion": "c"}, "PROMPT_EMPTY", "'prompt' is empty"),
        ("sft", {"prompt": "p", "completion": ""}, "COMPLETION_EMPTY", "'completion' is empty"),
        ("sft", {"text": "a\0"}, "ENC_CHARACTER", r"at character 1"),
        ("sft", {"text": "a\ud800"}, "ENC_CHARACTER", r"which is no text"),
        ("sft", {"prompt": "p", "completion": [ASSISTANT]}, "FORMAT_MIX", "'prompt' is text but 'completion' is mess"),
        ("preference", PAIR | {"rejected": ""}, "REJECTED_EMPTY", "'rejected' is empty"),
        ("preference", PAIR | {"chosen": "r"}, "PAIR_SAME", "are the same, 'r'"),
        ("preference", PAIR | {"margin": -1}, "PAIR_MARGIN", "'margin' is -1"),
        ("preference", PAIR | {"margin": math.nan}, "PAIR_MARGIN", "expected a number from 0"),
        ("preference", PAIR | {"margin": "big"}, "PAIR_MARGIN", "'big'"),
        ("unpaired", {"prompt": "p", "completion": "c"}, "FIELD_MISSING", "field 'label' is missing"),
        ("unpaired", {"messages": [USER, ASSISTANT]}, "FIELD_MISSING", "field 'label' is missing"),
        ("unpaired", LABELLED | {"label": None}, "FIELD_NULL", "'label' is null"),
        ("unpaired", LABELLED | {"label": 1}, "LABEL_TYPE", "'label' is 1; expected true, a good answer, or false"),
        ("unpaired", LABELLED | {"completion": " "}, "COMPLETION_EMPTY", "'completion' is empty"),
        ("unpaired", LABELLED | {"completion": [ASSISTANT]}, "FORMAT_MIX", "'prompt' is text but 'completion' is mess"),
        ("unpaired", LABELLED | {"terminated": 1}, "FIELD_TYPE", "'terminated' is 1; expected true"),
        ("unpaired", {"messages": [USER], "label": True}, "MSG_ORDER", "ends with a message of 'user'"),
        ("unpaired", {"messages": [ASSISTANT], "label": True}, "MSG_ORDER", r"messages\[0\] is from 'assistant'"),
        ("ranked", RANKED | {"completions": ["a"]}, "FIELD_TYPE", "expected a list of 2 or more"),
        ("ranked", RANKED | {"ranks": [1, 2]}, "RANK_BAD", "2 ranks of 3 completions"),
        ("ranked", RANKED | {"ranks": [2, 5, 5]}, "RANK_BAD", r"expected 1 for the best, as in \[1, 2, 2\]"),
        ("ranked", RANKED | {"ranks": [0, 1, 2]}, "RANK_BAD", "expected 1 for the best"),
        ("ranked", RANKED | {"ranks": [1, 2, 3.0]}, "RANK_BAD", "list of integers"),
        ("sft", {"prompt": "p", "completion": "c", "terminated": 1}, "FIELD_TYPE", "'terminated' is 1; expected true"),
        ("ranked", RANKED | {"terminated": True}, "FIELD_TYPE", "'terminated' is True; expected a list of true and"),
        ("ranked", RANKED | {"terminated": [True, None, True]}, "FIELD_TYPE", "expected a list of true and false"),
        ("ranked", RANKED | {"terminated": [True]}, "FIELD_TYPE", "1 values of 3 completions"),
        ("sft", {"messages": []}, "MSG_EMPTY", "empty list"),
        ("sft", {"messages": "hi"}, "FIELD_TYPE", "expected a list of messages"),
        ("sft", {"messages": [USER | {"content": None}, ASSISTANT]}, "MSG_EMPTY", r"messages\[0\] has content None"),
        ("sft", {"messages": [USER, ASSISTANT | {"content": " "}]}, "MSG_EMPTY", r"messages\[1\]: .*is empty"),
        ("sft", {"messages": [{"from": "human", "value": "x"}]}, "MSG_ROLE", "declare data.format=sharegpt"),
        ("sft", {"messages": [USER | {"role": "bot"}]}, "MSG_ROLE", "'bot'; expected one of system, user, assistant"),
        ("sft", {"messages": [ASSISTANT]}, "MSG_ORDER", r"messages\[0\] is from 'assistant'; expected 'user'"),
        ("sft", {"messages": [USER, USER, ASSISTANT]}, "MSG_ORDER", r"messages\[1\] is from 'user'"),
        ("sft", {"messages": [USER, SYSTEM, ASSISTANT]}, "MSG_ORDER", r"messages\[1\] is from 'system'"),
        ("sft", {"messages": [SYSTEM, USER]}, "MSG_ORDER", "ends with a message of 'user'; expected 'assistant'"),
        ("sft", {"messages": [SYSTEM]}, "MSG_ORDER", "ends with a message of 'system'"),
        ("prompt", {"prompt": [USER, ASSISTANT]}, "MSG_ORDER", "expected 'user'"),
    ],
)
def test_a_bad_row_is_refused_with_its_field(kind, row, code, message):
    with pytest.raises(RowError, match=message) as error:
        check_row(kind, "a.jsonl:1", row)
    assert error.value.code == code


def test_what_is_found_is_shown_in_eighty_characters():
    with pytest.raises(RowError) as error:
        check_row("sft", "a.jsonl:1", {"prompt": list(range(1000)), "completion": "c"})
    assert len(str(error.value)) < 200


@pytest.mark.parametrize("ranks", [[1, 2, 2], [2, 1, 2], [3, 2, 1], [1, 1, 3], [1, 1, 2]])
def test_ties_among_ranks_may_be_counted_either_way(ranks):
    assert check_row("ranked", "", RANKED | {"ranks": ranks}).ranks == ranks


def test_the_other_columns_are_kept():
    assert check_row("prompt", "", {"prompt": "p", "answer": 3}).extras == {"answer": 3}


def test_the_answer_of_a_conversation_is_no_part_of_its_prompt():
    row = check_row("prompt", "", {"messages": [USER, ASSISTANT]})
    assert row.prompt == [USER]
    assert row.extras == {"completion": "Hello"}


def test_messages_keep_role_and_content_alone():
    row = check_row("sft", "", {"messages": [USER | {"name": "Ann"}, ASSISTANT]})
    assert row.completion == [USER, ASSISTANT]


def test_the_label_of_a_conversation_is_that_of_its_last_message():
    row = check_row("unpaired", "", {"messages": [SYSTEM, USER, ASSISTANT, USER, ASSISTANT], "label": False, "x": 1})
    assert (row.prompt, row.completion) == ([SYSTEM, USER, ASSISTANT, USER], [ASSISTANT])
    assert (row.desirable, row.terminated, row.extras) == (False, True, {"x": 1})


def test_the_margin_defaults_to_zero():
    assert check_row("preference", "", PAIR).margin == 0.0
    assert check_row("preference", "", PAIR | {"margin": 2}).margin == 2.0


@pytest.mark.parametrize(("given", "read"), [({}, True), ({"terminated": None}, True), ({"terminated": False}, False)])
def test_an_answer_ended_by_itself_unless_the_row_says_otherwise(given, read):
    row = check_row("sft", "", {"prompt": "p", "completion": "c"} | given)
    assert (row.terminated, row.extras) == (read, {})


def test_each_ranked_answer_may_have_ended_or_not():
    row = check_row("ranked", "", RANKED | {"terminated": [True, False, True]})
    assert (row.terminated, row.extras) == ([True, False, True], {})
    assert check_row("ranked", "", RANKED).terminated == [True] * 3


def test_beside_other_columns_it_is_a_column_like_any():
    assert check_row("prompt", "", {"prompt": "p", "terminated": False}).extras == {"terminated": False}


def test_the_transcript_beside_a_prompt_is_left_out():
    assert check_row("prompt", "", {"prompt": "p", "messages": [USER]}).extras == {}


def test_texts_and_conversations_may_have_been_cut_off():
    assert check_row("sft", "", {"text": "t", "terminated": False}).terminated is False
    assert check_row("sft", "", {"messages": [USER, ASSISTANT], "terminated": False}).terminated is False
