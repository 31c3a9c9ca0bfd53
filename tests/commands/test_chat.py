import io
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from jaxrlhf.checkpoint.export import export_hf
from jaxrlhf.commands import chat
from jaxrlhf.commands.chat import talk
from jaxrlhf.commands.chat_config import ChatConfig, ChatDataConfig
from jaxrlhf.commands.chat_reply import Reply, TooLong
from jaxrlhf.commands.chat_turns import Conversation
from jaxrlhf.commands.config import SamplingConfig
from jaxrlhf.data.config import DataConfig
from jaxrlhf.data.indexing import build_index
from jaxrlhf.data.rowlog import RowError
from jaxrlhf.trainers.start import scalar_start
from tests.commands.chains import chain, chain_folder

STORIES = str(Path(__file__).parents[1] / "assets" / "stories260k-llama")
SUCCESSORS = {":": "room", "room": "was", "was": "fine"}  # and then the end
GREEDY = SamplingConfig(max_new_tokens=8, temperature=0.0, chunk=1)
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }} : {{ m['content'] }} {{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}assistant :{% endif %}"
)


@pytest.fixture
def typed(monkeypatch):
    """Puts lines on the standard input."""
    return lambda *lines: monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))


@pytest.fixture
def talked(typed, capsys):
    """Talks with something that answers with a function of what was said; returns what was written."""

    def run(reply, *lines, conversation=None, answers=1):
        typed(*lines)
        talk(Conversation(None, plain=False) if conversation is None else conversation, reply, answers)
        return capsys.readouterr().out.splitlines()

    return run


def count(said, number, show):
    """Answers with the number of messages."""
    show(f"{len(said)} ")
    show("messages")
    return Reply(f"{len(said)} messages", terminated=True)


def echo(said, number, show):
    """Goes on with a text in brackets."""
    show(f"[{number}]")
    return Reply(f"[{number}]", terminated=number > 0)


def test_turns_follow_each_other(talked):
    conversation = Conversation("be brief", plain=False)
    assert talked(count, "one", "", "two", conversation=conversation) == ["2 messages", "4 messages"]
    assert [message["role"] for message in conversation.until("three")] == [
        "system",
        *["user", "assistant"] * 2,
        "user",
    ]
    assert conversation.until("three")[0] == {"role": "system", "content": "be brief"}
    assert conversation.until("three")[-2:] == [
        {"role": "assistant", "content": "4 messages"},
        {"role": "user", "content": "three"},
    ]


def test_a_plain_text_goes_on(talked):
    conversation = Conversation(None, plain=True)
    assert talked(echo, "", "a", "", " b", conversation=conversation) == [
        "[0]",
        "(cut off at sampling.max_new_tokens)",
        "[1]",
        "[2]",
    ]
    assert conversation.until("c") == "a[0][1] b[2]c"


def test_turns_are_taken_back(talked):
    lines = talked(count, "/undo", "one", "two", "/undo", "three", "/reset", "four")
    assert lines == [
        "(there is no turn to take back)", "1 messages", "3 messages", "(took back 'two' and its answer)",
        "3 messages", "(a new conversation)", "1 messages",
    ]  # fmt: skip


def test_what_ends_the_conversation(talked):
    assert talked(count, "one") == ["1 messages"]  # the end of the input
    assert talked(count, "/quit", "one") == []


def test_unknown_commands_are_told_and_paths_are_no_commands(talked):
    assert talked(count, "/help")[0].startswith("(type a message; /undo takes the last turn back")
    assert talked(count, "/hepl", "/etc/hosts is what?") == [
        "(there is no /hepl; /help lists the commands)",
        "1 messages",
    ]


def test_a_conversation_is_saved_as_rows_for_fine_tuning(talked, tmp_path):
    path = tmp_path / "new" / "said.jsonl"
    replies = [Reply("room was", terminated=True), Reply("", terminated=True), Reply("fine", terminated=False)]
    lines = talked(
        lambda said, number, show: replies[number], "/save", f"/save {path}", "one", "two", "three", "/save",
        f"/save {path}", f"/save {path}", conversation=Conversation("system", plain=False),
    )  # fmt: skip
    assert lines[:2] == ["(there is no answer to write)"] * 2
    assert lines[-3:] == [
        "(name a file: /save FILE)",
        f"(wrote 2 answers to {path}, left out 1 empty ones)",
        f"({path} exists; write the conversation to a new file, or remove it first)",
    ]
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["terminated"] for row in rows] == [True, False]
    assert [len(row["prompt"]) for row in rows] == [2, 6]
    assert rows[0]["completion"] == [{"role": "assistant", "content": "room was"}]


def test_rows_of_a_conversation_and_of_a_text_are_read_by_sft(talked):
    tokenizer = chain({}, TEMPLATE).tokenizer
    for plain in (False, True):
        conversation = Conversation(None, plain=plain)
        talked(lambda *_: Reply(" was fine", terminated=True), "room", " it", conversation=conversation)
        index = build_index("sft", [conversation.rows()], tokenizer, DataConfig())
        texts = [tokenizer.decode(index.sequence(number)[0], skip_special_tokens=False) for number in range(2)]
        assert texts[1].endswith("it was fine </s>" if plain else "it </s> <unk> : was fine </s>")


def test_what_cannot_be_answered_is_told_and_not_kept(talked):
    def reply(said, number, show):
        if number == 1:
            raise TooLong("the conversation has 70 tokens, and the model 64 positions")
        if number == 2:
            raise RowError("MSG_TEMPLATE", "the chat template refuses the conversation: no")
        return count(said, number, show)

    lines = talked(reply, "one", "long", "odd", "a\0b", "two")
    assert lines == [
        "1 messages",
        "(the conversation has 70 tokens, and the model 64 positions, so there is no room for an answer; "
        "the message is not kept; shorten it, or: /undo takes "
        "the last turn back, /reset all of them)",
        "(the chat template refuses the conversation: no)",
        "(field 'message' has '\\x00' at character 1, which is no text; remove it)",
        "3 messages",
    ]


def test_bytes_that_are_no_text_are_told(talked, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9\none\n"), encoding="utf-8"))
    talk(Conversation(None, plain=False), count)
    refused, answer = capsys.readouterr().out.splitlines()
    assert (
        refused.startswith("(field 'message' has '\\udce9' at character 3, which is no text") and answer == "1 messages"
    )


def test_what_is_to_say_of_an_answer(talked):
    scores = np.array([0.5, 2.0, -1.0])
    replies = [
        Reply("a", terminated=True, scores=scores[:1]),
        Reply("a", terminated=True, scores=scores),
        Reply("", terminated=True),
        Reply("a", terminated=False, full=True),
    ]
    lines = talked(lambda said, number, show: replies[number], *"1234", answers=3)
    assert [line for line in lines if line and line != "(drawing 3 answers)"] == [
        "(score 0.5)",
        "(best of 3: score 2, mean 0.5, min -1; all: 0.5, 2, -1)",
        "(an empty answer)",
        "(cut off: the conversation fills the positions of the model; /undo takes the last turn back, /reset all of "
        "them)",
    ]


def test_ctrl_c_stops_an_answer_and_then_leaves(talked, monkeypatch, capsys):
    def stopped(said, number, show):
        return Reply("half" if number else "", terminated=False, stopped=True)

    conversation = Conversation(None, plain=False)
    assert talked(stopped, "one", "two", conversation=conversation) == [
        "(stopped; the message is taken back)",
        "",
        "(stopped)",
    ]
    assert [turn.answer for turn in conversation.turns] == ["half"]

    lines = iter([KeyboardInterrupt, "one", KeyboardInterrupt, KeyboardInterrupt])

    def ask(prompt):
        if isinstance(line := next(lines), str):
            return line
        raise line

    monkeypatch.setattr("builtins.input", ask)
    with pytest.raises(KeyboardInterrupt):
        talk(Conversation(None, plain=False), stopped)
    assert capsys.readouterr().out.splitlines() == [
        "(Ctrl-C again, or /quit, leaves)",
        "(stopped; the message is taken back)",
        "(Ctrl-C again, or /quit, leaves)",
    ]


def test_what_moves_the_cursor_is_not_written(talked):
    def reply(said, number, show):
        show("a\x1b[2J\tb\r")
        return Reply("a", terminated=True)

    assert talked(reply, "one")[0] == "a\ufffd[2J\tb\ufffd"


def test_a_policy_talks(typed, capsys, tmp_path):
    model = chain_folder(tmp_path / "model", SUCCESSORS, TEMPLATE)
    typed("describe it", "and the room", f"/save {tmp_path / 'said.jsonl'}")
    chat.run(ChatConfig(model=model, system="it was fine", sampling=GREEDY))
    assert capsys.readouterr().out.splitlines()[:2] == ["room was fine"] * 2
    rows = [json.loads(line) for line in (tmp_path / "said.jsonl").read_text().splitlines()]
    assert rows[1] == {
        "prompt": [
            {"role": "system", "content": "it was fine"},
            {"role": "user", "content": "describe it"},
            {"role": "assistant", "content": "room was fine"},
            {"role": "user", "content": "and the room"},
        ],
        "completion": [{"role": "assistant", "content": "room was fine"}],
        "terminated": True,
    }


def test_a_conversation_may_fill_the_positions_of_the_model(typed, capsys, tmp_path):
    model = chain_folder(tmp_path / "model", SUCCESSORS | {"fine": "room"}, TEMPLATE)  # which never ends
    typed("it " * 55, "it", "/undo", "it " * 60, "it")
    chat.run(ChatConfig(model=model, sampling=SamplingConfig(max_new_tokens=8, temperature=0.0)))
    full = "(cut off: the conversation fills the positions of the model; "
    assert [line.partition("/undo")[0] for line in capsys.readouterr().out.splitlines()] == [
        "room was fine room",
        full,
        "(the conversation has 71 tokens, and the model 64 positions, so there is no room for an answer; "
        "the message is not kept; shorten it, or: ",
        "(took back 'it it it it it it it it it it it it it it it it it it it it it it it it it i... and its answer)",
        "(the conversation has 65 tokens, and the model 64 positions, so there is no room for an answer; "
        "the message is not kept; shorten it, or: ",
        "room was fine room was fine room was",
        "(cut off at sampling.max_new_tokens)",
    ]


def test_the_best_of_several_answers_is_the_one_that_counts(typed, capsys, tmp_path):
    policy = chain(SUCCESSORS, TEMPLATE)
    model = str(export_hf(tmp_path / "model", policy.params, policy.config, tokenizer=policy.tokenizer))
    scorer, vocabulary = scalar_start(policy), policy.tokenizer.get_vocab()
    scorer.params["score"]["kernel"] = jnp.zeros((1, len(vocabulary))).at[0, vocabulary["fine"]].set(1.0)
    scorer = str(export_hf(tmp_path / "scorer", scorer.params, scorer.config, tokenizer=policy.tokenizer))
    typed("describe it")
    # Its last word alone is scored: of answers of one word, nearly all are not "fine".
    sampling = SamplingConfig(max_new_tokens=1, temperature=2.0, forbidden=("room",), top_k=40)
    chat.run(ChatConfig(model=model, reward_model=scorer, answers=64, sampling=sampling))
    drawing, answer, scores, _ = capsys.readouterr().out.splitlines()
    assert drawing == "(drawing 64 answers)"
    each = [float(score) for score in scores.partition("all: ")[2].rstrip(")").split(",")]
    assert len(each) == 64
    assert scores.startswith(f"(best of 64: score {max(each):.4g}, mean ")
    assert (answer == "fine") == (max(each) > 0)


def test_a_model_of_texts_goes_on_with_what_is_typed(typed, capsys):
    typed("Once upon a time,", "")
    chat.run(ChatConfig(model=STORIES, plain=True, sampling=SamplingConfig(max_new_tokens=12, temperature=0.0)))
    first, cut, second, _ = capsys.readouterr().out.splitlines()
    assert (first, cut) == (" there was a little girl named Lily. She lo", "(cut off at sampling.max_new_tokens)")
    assert second.startswith("ved to play")


def test_a_model_without_a_chat_template_is_refused_with_what_to_do(typed):
    typed("hi")
    with pytest.raises(ValueError, match="has no chat template; set data.chat_template to chatml, .*or plain=true"):
        chat.run(ChatConfig(model=STORIES))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"answers": 0}, "answers=0 must be positive"),
        ({"answers": 4}, "answers=4 needs a reward_model"),
        (
            {"answers": 4, "reward_model": "r", "sampling": GREEDY},
            "sampling.temperature=0 draws the same answer 4 times",
        ),
        ({"plain": True, "system": "s"}, "system has no effect with plain=true"),
        ({"plain": True, "data": ChatDataConfig(chat_template="hh")}, "data.chat_template=hh has no effect with plain"),
        ({"system": " "}, "system is empty; leave it out"),
        ({"sampling": SamplingConfig(slots=2)}, "sampling.slots=2 has no effect on 1 answers"),
    ],
)
def test_what_has_no_effect_or_cannot_be_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        ChatConfig(model="m", **fields)
