import gzip
import json

import pytest

from jaxrlhf.data.config import DataConfig, DatasetConfig
from jaxrlhf.data.rowlog import RowError, RowLog
from jaxrlhf.data.shapes import SHAPES, detect, rename
from jaxrlhf.data.sources import Conversion, checked_rows


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


HH = "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: A joke?\n\nAssistant:"
KWISE = {"prompt": "Name a fruit.", "responses": [{"text": "Fig", "rank": 2}, {"text": "Pear", "rank": 1}]}
PANDALM = {"instruction": "Add.", "input": "1 and 2", "response1": "3", "response2": "4", "label": 1}
SHAREGPT = {
    "conversations": [{"from": "system", "value": "Be kind."}, {"from": "human", "value": "Hi"}],
    "chosen": {"from": "gpt", "value": "Hello!"},
    "rejected": {"from": "gpt", "value": "What?"},
}
LLMBAR = {"subset": "natural", "input": "Add 1 and 2.", "output_1": "4", "output_2": "3", "label": 2}
SEED = {"id": "s1", "name": "add", "instruction": "Add.", "is_classification": False}
ASKED = {"prompt": "question"}

# The layout of each public file: (kind, row, what the configuration declares, prompt, answers).
TABLE = {
    "tinystories": ("sft", {"id": "1", "text": "Once."}, {}, "", ["Once."]),
    "alpaca": (
        "sft",
        {"instruction": "Add.", "input": "1 and 2", "output": "3"},
        {},
        [],
        [[user("Add.\n\n1 and 2"), assistant("3")]],
    ),
    "alpaca without input": ("prompt", {"instruction": "Sing.", "input": "", "output": "La"}, {}, [user("Sing.")], []),
    "self_instruct": (
        "sft",
        SEED | {"instances": [{"input": "1 and 2", "output": "3"}]},
        {},
        [],
        [[user("Add.\n\n1 and 2"), assistant("3")]],
    ),
    "hh_rlhf": (
        "preference",
        {"chosen": HH + " Knock, knock.", "rejected": HH + " No."},
        {},
        [user("Hi"), assistant("Hello."), user("A joke?")],
        [[assistant("Knock, knock.")], [assistant("No.")]],
    ),
    "hh_rlhf prompts": (
        "prompt",
        {"chosen": HH + " Knock, knock.", "rejected": HH + " No."},
        {},
        [user("Hi"), assistant("Hello."), user("A joke?")],
        [],
    ),
    "pandalm": ("preference", PANDALM, {}, [user("Add.\n\n1 and 2")], [[assistant("3")], [assistant("4")]]),
    "pandalm prompts": ("prompt", PANDALM, {}, [user("Add.\n\n1 and 2")], []),
    "autoj": (
        "preference",
        {"scenario": "math", "prompt": "Add 1 and 2.", "response1": "4", "response2": "3", "label": 2},
        {},
        [user("Add 1 and 2.")],
        [[assistant("3")], [assistant("4")]],
    ),
    "llmbar": (
        "preference",
        LLMBAR,
        {"columns": {"prompt": "input", "response1": "output_1", "response2": "output_2"}},
        [user("Add 1 and 2.")],
        [[assistant("3")], [assistant("4")]],
    ),
    "hhh_alignment": (
        "preference",
        {"subset": "other", "prompt": "Why?", "chosen": "Because.", "rejected": "No."},
        {},
        "Why?",
        ["Because.", "No."],
    ),
    "dpo_en": (
        "preference",
        SHAREGPT,
        {},
        [{"role": "system", "content": "Be kind."}, user("Hi")],
        [[assistant("Hello!")], [assistant("What?")]],
    ),
    "alpaca with the rendered text": (
        "sft",
        {"instruction": "Add.", "input": "", "output": "3", "text": "Below is an instruction ..."},
        {"format": "alpaca"},
        [],
        [[user("Add."), assistant("3")]],
    ),
    "conversations with the rendered text": (
        "sft",
        {"messages": [user("Hi"), assistant("Hello!")], "text": "Hi Hello!"},
        {"format": "messages"},
        [],
        [[user("Hi"), assistant("Hello!")]],
    ),
    "kto_en": (
        "sft",
        {"messages": [user("Hi"), assistant("Hello!")], "label": True},
        {"format": "messages"},
        [],
        [[user("Hi"), assistant("Hello!")]],
    ),
    "kto_en labels": (
        "unpaired",
        {"messages": [user("Hi"), assistant("Hello!")], "label": False},
        {},
        [user("Hi")],
        [[assistant("Hello!")]],
    ),
    "kto_mix": (
        "unpaired",
        {"prompt": [user("Hi")], "completion": [assistant("Hello!")], "label": True},
        {},
        [user("Hi")],
        [[assistant("Hello!")]],
    ),
    "labelled alpaca": (
        "unpaired",
        {"instruction": "Add.", "input": "1 and 2", "output": "3", "label": True},
        {},
        [user("Add.\n\n1 and 2")],
        [[assistant("3")]],
    ),
    "labelled sharegpt": (
        "unpaired",
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello!"}], "kto_tag": False},
        {"columns": {"label": "kto_tag"}},
        [user("Hi")],
        [[assistant("Hello!")]],
    ),
    "truthfulqa judgements": (
        "unpaired",
        {"question": "Is it flat?", "answer": " No.", "true": True},
        {"columns": {"prompt": "question", "completion": "answer", "label": "true"}},
        "Is it flat?",
        [" No."],
    ),
    "kto_en prompts": ("prompt", {"messages": [user("Hi"), assistant("Hello!")], "label": True}, {}, [user("Hi")], []),
    "alpaca_eval_kwise": ("ranked", KWISE, {}, [user("Name a fruit.")], [[assistant("Fig")], [assistant("Pear")]]),
    "truthfulqa_labels": (
        "sft",
        {"question": "Is it flat?", "answer": " No.", "true": True},
        {"columns": {"prompt": "question", "completion": "answer"}},
        "Is it flat?",
        [" No."],
    ),
    "gsm8k": ("prompt", {"question": "1 + 2?", "answer": "#### 3"}, {"columns": ASKED}, "1 + 2?", []),
    "gsm8k as chat": (
        "sft",
        {"question": "1 + 2?", "answer": "#### 3"},
        {"columns": {"instruction": "question", "output": "answer"}},
        [],
        [[user("1 + 2?"), assistant("#### 3")]],
    ),
    "real_toxicity": ("prompt", {"prompt": "They", "continuation": " ran.", "toxicity": 0.1}, {}, "They", []),
    "alpaca_eval": ("prompt", {"instruction": "Sing.", "output": "La", "generator": "m"}, {}, [user("Sing.")], []),
    "mt_bench": ("prompt", {"question_id": 1, "turns": ["Sing.", "Louder."]}, {}, [user("Sing.")], []),
    "advbench": ("prompt", {"goal": "Do it", "target": "Sure"}, {"columns": {"prompt": "goal"}}, "Do it", []),
    "simple_safety": (
        "prompt",
        {"id": "s", "prompts_final": "Do?"},
        {"columns": {"prompt": "prompts_final"}},
        "Do?",
        [],
    ),
    "hellaswag": ("prompt", {"ctx": "He then", "endings": ["a"]}, {"columns": {"prompt": "ctx"}}, "He then", []),
    "multiple choice": ("prompt", {"question": "Which?", "choices": ["a"]}, {"columns": ASKED}, "Which?", []),
    "bbh": ("prompt", {"input": "not True is", "target": "False"}, {"columns": {"prompt": "input"}}, "not True is", []),
}


def _answers(row):
    names = ("completion", "chosen", "rejected")
    return [getattr(row, name) for name in names if hasattr(row, name)] + list(getattr(row, "completions", []))


@pytest.mark.parametrize("name", TABLE)
def test_each_public_layout_loads_from_its_file(tmp_path, name):
    kind, row, declared, prompt, answers = TABLE[name]
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress((json.dumps(row) + "\n").encode() * 2))
    source = DatasetConfig(path=str(path), **declared)
    rows = list(checked_rows(kind, source, 1, DataConfig(), RowLog(), Conversion()))
    assert [row.where for row in rows] == [f"{path}:1", f"{path}:2"]
    assert (rows[0].prompt, _answers(rows[0])) == (prompt, answers)


def test_a_row_with_several_instances_gives_several_rows():
    row = SEED | {"instances": [{"input": "", "output": "3"}, {"input": "2", "output": "4"}]}
    conversion = Conversion()
    rows = list(checked_rows("sft", [row], 1, DataConfig(), RowLog(), conversion))
    assert [row.completion[-1]["content"] for row in rows] == ["3", "4"]
    assert conversion.added == 1


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({"label": 0}, "tie"), ({"response1": "same", "response2": "same"}, "tie"), ({"response2": " "}, "blank")],
)
def test_pairs_that_say_nothing_are_named(changes, reason):
    assert SHAPES["labelled_pairs"].convert(PANDALM | changes) == reason


def test_a_label_beyond_the_two_answers_is_refused():
    with pytest.raises(RowError, match="'label' is 3; expected 1 or 2"):
        SHAPES["labelled_pairs"].convert(PANDALM | {"label": 3})


def test_the_prompt_of_plain_pairs_is_what_both_begin_with():
    (row,) = SHAPES["preference"].convert({"chosen": "The cat sat.", "rejected": "The cat sang."})
    assert (row["prompt"], row["chosen"], row["rejected"]) == ("The cat", " sat.", " sang.")


def test_the_prompt_of_conversations_ends_with_the_user():
    same = [user("Hi"), assistant("Hello"), user("Joke?")]
    chosen = same + [assistant("Knock")]
    (row,) = SHAPES["preference"].convert({"chosen": chosen, "rejected": same[:2] + [user("Tale?"), assistant("Once")]})
    assert row["prompt"] == same[:1]
    assert row["chosen"] == chosen[1:]


def test_a_prompt_repeated_as_text_beside_conversations_is_dropped():
    row = {"prompt": "Hi", "chosen": [user("Hi"), assistant("a")], "rejected": [user("Hi"), assistant("b")]}
    assert SHAPES["preference"].convert(row)[0]["prompt"] == [user("Hi")]


def test_answers_to_different_prompts_are_refused():
    with pytest.raises(RowError, match="do not begin with the same one"):
        SHAPES["preference"].convert({"chosen": "Cats sit.", "rejected": "Dogs sing."})


@pytest.mark.parametrize(
    ("kind", "row", "message"),
    [
        ("sft", {"text": "a", "messages": []}, "fit text and messages; choose one with data.format"),
        ("prompt", {"question": "a"}, "for instance {prompt: question}"),
        ("unpaired", {"question": "a", "good": True}, "for instance {prompt: question, completion: ..., label: ...}"),
        ("sft", {"messages": [], "label": False}, "SFT would imitate both"),
    ],
)
def test_unclear_columns_are_refused_with_the_choices(kind, row, message):
    with pytest.raises(ValueError, match=message):
        detect(kind, row)


def test_rename_keeps_the_other_columns():
    assert rename({"q": 1, "x": 2}, {"prompt": "q"}) == {"prompt": 1, "x": 2}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "a"}, "field 'qestion' is missing .*did you mean 'question'"),
        ({"qestion": "a", "prompt": "b"}, "a column 'prompt' exists"),
    ],
)
def test_rename_refuses_missing_and_taken_names(row, message):
    with pytest.raises(RowError, match=message):
        rename(row, {"prompt": "qestion"})


def test_sharegpt_refuses_unknown_speakers():
    with pytest.raises(RowError, match="a turn from 'robot'; expected one of human"):
        SHAPES["sharegpt"].convert({"conversations": [{"from": "robot", "value": "x"}]})
