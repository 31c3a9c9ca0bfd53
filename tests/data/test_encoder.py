import numpy as np
import pytest

from jaxrlhf.data import chat
from jaxrlhf.data.config import DataConfig
from jaxrlhf.data.encoder import answer_texts, encode, make_encoder, token_named, with_template
from tests.data.tokenizers import CHATML, byte_level, prefixing


def test_a_missing_end_token_is_an_error_when_it_is_wanted():
    tokenizer = byte_level()
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="no end-of-sequence token; set its eos_token, or data.add_eos=false"):
        make_encoder(tokenizer, DataConfig())


def test_many_sequences_are_encoded_as_each_alone():
    tokenizer = prefixing()
    encoder = make_encoder(tokenizer, DataConfig())
    pieces = [chat.split_answer(encoder, "a" * i, "b" * (i + 1)) for i in range(4)]
    together = encode(encoder, pieces)
    for i, encoded in enumerate(together):
        (alone,) = encode(encoder, [pieces[i]])
        np.testing.assert_array_equal(encoded.ids, alone.ids)
        np.testing.assert_array_equal(encoded.mask, alone.mask)


@pytest.mark.parametrize("tokenizer", [byte_level(bos=True), prefixing()])
@pytest.mark.parametrize("answer", [" ab", "ab", " a b", "."])
def test_the_text_of_an_answer_is_what_is_read_back(tokenizer, answer):
    encoder = make_encoder(tokenizer, DataConfig())
    (encoded,) = encode(encoder, [chat.split_answer(encoder, "once", answer)])
    ids = encoded.ids[None, encoded.prompt :]  # the last of them ends the answer
    assert answer_texts(tokenizer, ids, np.array([ids.size]), np.array([True])) == [answer]


def test_the_text_of_no_tokens_is_empty():
    assert answer_texts(prefixing(), np.zeros((1, 2), np.int32), np.array([0]), np.array([False])) == [""]


def test_a_tokenizer_without_a_choice_stays_as_it_is():
    tokenizer = byte_level(template=CHATML)
    assert with_template(tokenizer, DataConfig()) is tokenizer


def test_what_ends_an_answer_is_no_part_of_its_text_even_where_it_is_a_word():
    tokenizer = byte_level()
    ids = np.array([tokenizer("hello no", add_special_tokens=False)["input_ids"]], np.int32)
    whole, ended = (answer_texts(tokenizer, ids, np.array([ids.size]), np.array([ends])) for ends in (False, True))
    assert whole == ["hello no"] and whole[0].startswith(ended[0]) and len(ended[0]) < len(whole[0])


@pytest.mark.parametrize(("tokenizer", "space"), [(byte_level(), "\u0120"), (prefixing(), "\u2581")])
def test_a_token_is_named_as_in_the_vocabulary_or_as_text(tokenizer, space):
    encoder, vocabulary = make_encoder(tokenizer, DataConfig()), tokenizer.get_vocab()
    name = f"{space}t" if space == "\u0120" else f"{space}a"
    assert token_named(encoder, name) == token_named(encoder, name.replace(space, " ")) == vocabulary[name]
    assert token_named(encoder, "</s>") == tokenizer.eos_token_id
    assert token_named(encoder, "a") == vocabulary["a"]


@pytest.mark.parametrize(
    ("tokenizer", "text", "found"),
    [
        (byte_level(), "hello no", "'hello no' is not one token of the vocabulary but .'hello'"),
        (prefixing(), "Z", "'Z' is not one token of the vocabulary but .'<unk>'"),
    ],
)
def test_a_text_that_is_no_token_is_none(tokenizer, text, found):
    with pytest.raises(ValueError, match=found):
        token_named(make_encoder(tokenizer, DataConfig()), text)
