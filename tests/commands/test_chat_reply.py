from pathlib import Path

import jax
import numpy as np
import pytest
from transformers import AutoTokenizer

from jaxrlhf.commands import chat_reply
from jaxrlhf.commands.chat_config import ChatConfig
from jaxrlhf.commands.chat_reply import TooLong, make_reply
from jaxrlhf.commands.config import SamplingConfig
from jaxrlhf.commands.sampling import AnsweredBatch
from jaxrlhf.data.config import DataConfig
from jaxrlhf.data.encoder import make_encoder
from jaxrlhf.sharding.mesh import make_mesh
from jaxrlhf.trainers.start import Start
from tests.trainers.small import start

TOKENIZER = AutoTokenizer.from_pretrained(Path(__file__).parents[1] / "assets" / "stories260k-llama")
POLICY = Start(config=start().config, params={}, tokenizer=TOKENIZER)


@pytest.fixture
def reply(monkeypatch):
    """Builds what answers "hello" with a certain text, and returns the reply and the pieces that appeared."""

    def run(text, *, stop=(), plain=True, interrupted=False, number=0, shown_until=None, said="hello"):
        calls = []

        def answer(prompts, rows, key, *, longest, watch):
            continued = TOKENIZER(text.removeprefix(" "), add_special_tokens=False)  # it puts a space before each text
            tokens = np.array(continued["input_ids"])
            calls.append((prompts, longest))
            for count in range(1, len(tokens) + 1):
                watch(0, tokens[:count], count == len(tokens))
            if interrupted:
                raise KeyboardInterrupt
            completion = text if shown_until is None else text[:shown_until]
            return AnsweredBatch(
                rows=rows,
                completions=[[completion]],
                lengths=np.array([[len(tokens)]]),
                terminated=np.array([[len(tokens) < longest]]),
                prompts=prompts,
                samples=None,
            )

        monkeypatch.setattr(chat_reply, "make_answer", lambda *args, **options: answer)
        config = ChatConfig(model="m", plain=plain, sampling=SamplingConfig(stop=stop, max_new_tokens=40, chunk=1))
        encoder = make_encoder(TOKENIZER, DataConfig())
        pieces = []
        with jax.set_mesh(mesh := make_mesh()):
            found = make_reply(config, POLICY, None, encoder, mesh)(said, number, pieces.append)
        return found, pieces, calls[0]

    return run


def test_characters_appear_whole_while_they_are_drawn(reply):
    text = " a 你好 cat 😀."
    found, pieces, _ = reply(text)
    assert "".join(pieces) == found.text == text
    assert len(pieces) > 5 and not any("\ufffd" in piece for piece in pieces)
    assert (found.terminated, found.full, found.scores) == (True, False, None)


def test_a_stop_string_never_appears_nor_what_may_begin_one(reply):
    text = " a\n\nb\n\nUser: c"  # which begins twice
    found, pieces, _ = reply(text, stop=("\n\nUser:",), shown_until=text.index("\n\nUser"))
    assert "".join(pieces) == found.text == " a\n\nb"


def test_white_space_around_a_turn_does_not_appear(reply, monkeypatch):
    monkeypatch.setattr(chat_reply, "split_prompt", lambda encoder, said: [])
    found, pieces, _ = reply("\n a b", plain=False)
    assert "".join(pieces) == found.text == "a b"


def test_what_was_drawn_until_ctrl_c_is_the_answer(reply):
    found, pieces, _ = reply(" a cat", interrupted=True)
    assert "".join(pieces) == found.text == " a cat"
    assert (found.terminated, found.stopped) == (False, True)


def test_a_prompt_is_the_first_row_of_few_widths_with_the_number_of_its_draws(reply):
    batches = [reply("a", number=7, said=said)[2][0] for said in ("a b", "a b" * 10)]
    assert batches[0].tokens.shape == batches[1].tokens.shape == (8, 64)
    np.testing.assert_array_equal(batches[0].segment_ids.sum(axis=1), [3, *[0] * 7])
    assert batches[0].segment_ids[0, -3:].all()
    assert batches[0].tokens[0, -3:].tolist() == TOKENIZER("a b")["input_ids"]
    assert batches[0].row_ids[0] == 7


def test_the_room_that_is_left_bounds_the_answer(reply):
    found, _, (_, longest) = reply("a b c", said="a " * 30)  # 64 positions
    assert longest == 64 - len(TOKENIZER("a " * 30)["input_ids"]) > 0
    assert (found.terminated, found.full) == (longest > 3, longest <= 3)
    with pytest.raises(TooLong, match="the conversation has .* tokens, and the model 64 positions"):
        reply("a", said="a " * 64)
