import dataclasses
import json

import pytest

from jaxrlhf.commands import generate
from jaxrlhf.commands.config import GenerateConfig, SamplingConfig
from jaxrlhf.commands.sampled import draw_answers
from jaxrlhf.data.config import DataConfig
from jaxrlhf.data.indexing import build_index
from jaxrlhf.demo.tokenizer import build_tokenizer
from jaxrlhf.models.config import ComputeConfig
from tests.commands.chains import chain_folder
from tests.trainers.small import prompts

# After a room the answer ends; after rain it goes on until it is cut off.
SUCCESSORS = {"room": "was", "was": "fine", "rained": "outside", "outside": "outside", ":": "room"}
ENDED, CUT = "was fine", "outside outside outside outside"
GREEDY = SamplingConfig(max_new_tokens=4, temperature=0.0)
NEARLY_GREEDY = SamplingConfig(max_new_tokens=4, temperature=0.01)
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }} : {{ m['content'] }} {{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}assistant :{% endif %}"
)


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def answer(write, tmp_path):
    """Answers rows greedily with the policy of known answers, and returns the path of the answers."""

    def run(rows, template=None, sampling=GREEDY, **fields):
        model = chain_folder(tmp_path / "model", SUCCESSORS, template)
        dataset, out = write("prompts.jsonl", rows), tmp_path / "new" / "answers.jsonl"
        config = GenerateConfig(model=model, dataset=dataset, out=str(out), batch_size=8, sampling=sampling, **fields)
        generate.run(config)
        return out

    return run


def learnt(path, template=None):
    """The sequences that fine-tuning on the file would read, as text."""
    tokenizer = build_tokenizer()
    tokenizer.chat_template = template
    index = build_index("sft", [read(path)], tokenizer, DataConfig())
    assert index.report.extra_columns == ()
    return [tokenizer.decode(index.sequence(number)[0]) for number in range(len(index.offsets) - 1)]


def test_answers_are_written_beside_their_rows(policy, write, tmp_path):
    rows = prompts(5)
    config = GenerateConfig(
        model=str(policy),
        dataset=write("prompts.jsonl", rows),
        out=str(tmp_path / "answers.jsonl"),
        answers=3,
        batch_size=8,
        sampling=SamplingConfig(max_new_tokens=6),
    )
    generate.run(config)
    found = read(tmp_path / "answers.jsonl")
    assert [(row["prompt"], row["wanted"]) for row in found] == [(row["prompt"], row["wanted"]) for row in rows]
    assert all(len(row["completions"]) == len(row["terminated"]) == 3 for row in found)
    assert any(len(set(row["completions"])) > 1 for row in found)
    generate.run(dataclasses.replace(config, out=str(tmp_path / "again.jsonl")))
    assert read(tmp_path / "again.jsonl") == found


def test_a_row_says_whether_its_answer_was_cut_off(answer):
    assert read(answer([{"prompt": "the room"}, {"prompt": "it rained"}])) == [
        {"prompt": "the room", "completion": ENDED, "terminated": True},
        {"prompt": "it rained", "completion": CUT, "terminated": False},
    ]


def test_an_answer_ends_before_a_stop_string(answer):
    rows = [{"prompt": "the room"}, {"prompt": "it rained"}, {"prompt": "fine"}]
    path = answer(rows, sampling=dataclasses.replace(GREEDY, stop=("never", "outside outside", "as fi"), chunk=2))
    assert read(path) == [
        {"prompt": "the room", "completion": "w", "terminated": True},
        {"prompt": "it rained", "completion": "", "terminated": True},
        {"prompt": "fine", "completion": "", "terminated": True},
    ]


def test_answers_are_trained_on_as_they_were_drawn(answer):
    path = answer([{"prompt": "the room"}, {"prompt": "it rained"}])
    assert learnt(path) == [f"<s> the room {ENDED} </s>", f"<s> it rained {CUT}"]


@pytest.mark.parametrize("terminated", [True, False])
def test_a_conversation_goes_on_in_messages_and_is_trained_on_as_it_was_drawn(answer, terminated, monkeypatch):
    if not terminated:
        monkeypatch.setitem(SUCCESSORS, ":", "outside")
    text = f"room {ENDED}" if terminated else CUT
    messages = [{"role": "user", "content": "describe it"}]
    path = answer([{"messages": messages}], TEMPLATE)
    completion = [{"role": "assistant", "content": text}]
    assert read(path) == [{"prompt": messages, "completion": completion, "terminated": terminated}]
    end = " </s>" if terminated else ""
    expected = f"<unk> : describe it </s> <unk> : {text}{end}"
    assert learnt(path, TEMPLATE) == [expected]


def test_several_answers_to_a_conversation_are_lists_of_messages(answer):
    asked = [{"messages": [{"role": "user", "content": "describe it"}]}]
    (row,) = read(answer(asked, TEMPLATE, NEARLY_GREEDY, answers=2))
    assert row["completions"] == [[{"role": "assistant", "content": f"room {ENDED}"}]] * 2
    assert row["terminated"] == [True, True]


def test_several_greedy_answers_which_are_one_are_refused():
    with pytest.raises(ValueError, match="draws the same answer 2 times; use a positive one, or answers=1"):
        GenerateConfig(model="m", dataset="d", out="o", answers=2, sampling=GREEDY)


def test_columns_of_other_answers_make_way(answer):
    rows = [{"prompt": "the room", "completions": ["a", "b"], "ranks": [1, 2], "terminated": [True, True], "id": 3}]
    assert read(answer(rows)) == [{"prompt": "the room", "completion": ENDED, "terminated": True, "id": 3}]


def test_a_transcript_beside_a_plain_prompt_is_no_conversation(answer):
    rows = [{"prompt": "the room", "messages": [{"role": "user", "content": "describe it"}]}]
    assert read(answer(rows, data=DataConfig(format="prompt"))) == [
        {"prompt": "the room", "completion": ENDED, "terminated": True}
    ]


def test_the_file_appears_when_it_is_whole(answer, tmp_path, monkeypatch):
    def failing(*args, **kwargs):
        yield next(draw_answers(*args, **kwargs))
        raise RuntimeError("the machine went away")

    monkeypatch.setattr(generate, "draw_answers", failing)
    with pytest.raises(RuntimeError, match="went away"):
        answer([{"prompt": "the room"}] * 12)
    assert list((tmp_path / "new").iterdir()) == []


def test_a_file_that_exists_is_kept(tmp_path):
    ranked = tmp_path / "answers.jsonl"
    ranked.write_text("ranks")
    with pytest.raises(ValueError, match="answers.jsonl exists; write answers to a new file, or remove it first"):
        generate.run(GenerateConfig(model="nothing", dataset="nothing", out=str(ranked)))
    assert ranked.read_text() == "ranks"


def test_progress_is_reported(answer, capsys):
    answer([{"prompt": "the room"}, {"prompt": "it rained"}, {"prompt": "hotel"}] * 4)
    counts = [line.split("  ") for line in capsys.readouterr().err.splitlines() if line.startswith("answers")]
    assert [line[0] for line in counts] == ["answers 8/12", "answers 12/12"]
    assert [line[-2:] for line in counts] == [["cut off 3", "empty 2"], ["cut off 4", "empty 4"]]
    assert all(line[-3].endswith(" tok/s") for line in counts)


def test_bad_numbers_are_refused():
    with pytest.raises(ValueError, match=r"temperature=-1.0 must not be negative; top_p=2.0 must lie in \(0, 1\]"):
        SamplingConfig(temperature=-1.0, top_p=2.0)
    with pytest.raises(ValueError, match="answers=0"):
        GenerateConfig(model="m", dataset="d", out="o", answers=0)


def test_attention_that_the_devices_cannot_have_is_refused_before_a_model_is_loaded(tmp_path):
    names = {"model": "nothing", "dataset": "nothing", "out": str(tmp_path / "answers.jsonl")}
    with pytest.raises(ValueError, match="compute.attention='splash' needs a TPU; the program is for cpu"):
        generate.run(GenerateConfig(**names, compute=ComputeConfig(attention="splash")))
