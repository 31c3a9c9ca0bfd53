from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from jaxrlhf.generation.stopping import GrowingText, before_beginning, before_stop, stop_at
from tests.data.tokenizers import byte_level, prefixing

STORIES = AutoTokenizer.from_pretrained(Path(__file__).parents[1] / "assets" / "stories260k-llama")
TOKENIZERS = {"bytes": byte_level(), "prefixing": prefixing(), "byte fallback": STORIES}


def decoder(tokenizer) -> Callable[[np.ndarray], str]:
    return lambda ids: tokenizer.decode(ids.tolist(), skip_special_tokens=True)


def ids_of(tokenizer, text: str) -> np.ndarray:
    return np.array(tokenizer(text, add_special_tokens=False)["input_ids"], np.int32)


def looked(strings, decode, tokens: np.ndarray, step: int) -> int | None:
    """What a listener says in the end that looks at an answer every `step` tokens."""
    listen = stop_at(strings, decode)
    for count in [*range(step, len(tokens), step), len(tokens)]:
        keep = listen(0, tokens[:count])
        if keep is not None:
            return keep
    return None


def fewest(strings, decode, tokens: np.ndarray) -> int | None:
    """The definition, by decoding every beginning of the answer from scratch."""
    texts = [decode(tokens[:count]) for count in range(1, len(tokens) + 1)]
    return next((count for count, text in enumerate(texts, start=1) if any(string in text for string in strings)), None)


PIECES = {1: "Hi", 2: "\n", 3: "\nHu", 4: "man", 5: ": no", 6: " and", 7: "x\n\nHuman: y"}


def decode_pieces(ids: np.ndarray) -> str:
    return "".join(PIECES[int(number)] for number in ids)


@pytest.mark.parametrize("step", [1, 3, 10])
@pytest.mark.parametrize(
    ("ids", "keep"),
    [
        ([1, 2, 3, 4, 5, 6], 5),  # across four tokens, the last of which says more
        ([1, 7, 6], 2),  # within a token
        ([1, 2, 3, 4, 6, 6], None),
        ([1, 2, 3, 2, 3, 4, 5], 7),  # begun in vain, and then whole
    ],
)
def test_an_answer_ends_with_the_token_that_completes_the_string(ids, keep, step):
    assert looked(["\n\nHuman:"], decode_pieces, np.array(ids), step) == keep


def test_the_first_of_several_strings_ends_the_answer():
    ids = np.array([1, 6, 2, 2, 1])
    assert looked(["\n\n", "and"], decode_pieces, ids, 5) == 2
    assert looked(["\n\n", "never"], decode_pieces, ids, 5) == 4


@pytest.mark.parametrize("step", [1, 4, 64])
@pytest.mark.parametrize("name", TOKENIZERS)
def test_it_is_the_fewest_tokens_whose_text_holds_a_string(name, step):
    """Texts with characters of several bytes, spaces and line breaks; strings from anywhere in them."""
    tokenizer, random = TOKENIZERS[name], np.random.default_rng(0)
    letters = list("ab. \n") if name == "prefixing" else list("ab \n.é你😀")
    for decode in (decoder(tokenizer), lambda ids: " " + decoder(tokenizer)(ids)):
        for _ in range(60):
            text = "".join(random.choice(letters, 40))
            starts = random.integers(1, 38, 2)
            strings = [text[start : start + random.integers(1, 7)] for start in starts]
            tokens = ids_of(tokenizer, text)
            expected = fewest(strings, decode, tokens)
            assert expected is not None
            assert looked(strings, decode, tokens, step) == expected


@pytest.mark.parametrize("step", [1, 5])
def test_bytes_that_are_no_text_hide_nothing(step):
    tokenizer, random = byte_level(), np.random.default_rng(1)
    decode, found = decoder(tokenizer), 0
    for _ in range(200):
        tokens = random.integers(0, 256, 30)
        expected = fewest(["a", "\n", "zz"], decode, tokens)
        assert looked(["a", "\n", "zz"], decode, tokens, step) == expected
        found += expected is not None
    assert 20 < found < 180


def test_a_character_begun_by_the_completing_token_does_not_hide_it():
    decode = lambda ids: bytes(ids.tolist()).decode(errors="replace")  # noqa: E731  (a byte is a token)
    tokens = np.frombuffer("go \u4f60".encode(), np.uint8)
    pairs = lambda ids: bytes(x for number in ids for x in PAIRS[int(number)]).decode(errors="replace")  # noqa: E731
    assert looked(["o "], decode, tokens, 1) == 3
    assert looked(["o "], pairs, np.arange(3), 3) == 2


PAIRS = [b"go", b" \xe4", b"\xbd\xa0"]


def test_tokens_without_text_do_not_cost_the_next_one_its_space():
    tokens = ids_of(STORIES, "one day a dog")
    tokens = np.insert(tokens, range(1, len(tokens)), STORIES.eos_token_id)  # which decoding skips
    for string in (" d", " a", " do"):
        assert looked([string], decoder(STORIES), tokens, 1) == fewest([string], decoder(STORIES), tokens)


def test_text_is_settled_by_whole_characters():
    growing, tokens = GrowingText(decoder(STORIES)), ids_of(STORIES, "a 你 b")
    seen = []
    for count in range(1, len(tokens) + 1):
        growing.settle(tokens[:count])
        seen.append(growing.text)
    assert seen[-1] == "a 你 b" and "a 你" in seen
    assert not any("\ufffd" in text for text in seen)


@pytest.mark.parametrize("step", [1, 16, 64])
@pytest.mark.parametrize("kind", ["text", "no text"])
def test_a_token_is_decoded_a_few_times_however_long_the_answer(kind, step):
    tokens = ids_of(STORIES, "One day, a dog saw 你好 and ran. " * 60)
    if kind == "no text":
        tokens = np.full(1000, STORIES.convert_tokens_to_ids("<0xE4>"))
    decoded = 0

    def decode(ids: np.ndarray) -> str:
        nonlocal decoded
        decoded += len(ids)
        return decoder(STORIES)(ids)

    assert len(tokens) > 900
    assert looked(["never\n\nthere"], decode, tokens, step) is None
    assert decoded < (12 if kind == "text" else 2 * step + 64) * len(tokens)


def test_answers_are_told_apart():
    listen = stop_at(["ab"], lambda ids: "".join(map(chr, ids)))
    assert listen(0, np.frombuffer(b"a", np.uint8)) is None
    assert listen(1, np.frombuffer(b"b", np.uint8)) is None
    assert listen(1, np.frombuffer(b"bb", np.uint8)) is None
    assert listen(0, np.frombuffer(b"ab", np.uint8)) == 2


@pytest.mark.parametrize("strings", [[], [""], ["a", ""], ["\ufffd"]])
def test_strings_that_nothing_or_anything_holds_are_refused(strings):
    with pytest.raises(ValueError, match="expected some, each with text, and without U"):
        stop_at(strings, decode_pieces)


def test_the_text_is_cut_where_the_first_string_begins():
    assert before_stop(["\n\n", "Human"], "Hi\n\nHuman: no") == "Hi"
    assert before_stop(["Human", "n:"], "Hi\n\nHuman: no") == "Hi\n\n"
    assert before_stop(["never"], "Hi") == "Hi"
    assert before_stop([], "Hi") == "Hi"


@pytest.mark.parametrize(
    ("text", "shown"),
    [("Hi\n\nHum", "Hi"), ("Hi\n\nAssistant", "Hi"), ("Hi\n", "Hi"), ("Hi\nHum", "Hi\nHum"), ("Hi", "Hi"), ("", "")],
)
def test_what_may_begin_a_string_is_held_back(text, shown):
    assert before_beginning(["\n\nHuman:", "\n\nAssistant:"], text) == shown
    assert before_beginning([], text) == text
