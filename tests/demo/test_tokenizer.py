from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from jaxrlhf.demo.texts import make_demonstrations, make_pretraining_text
from jaxrlhf.demo.tokenizer import build_tokenizer

PROMPT = "mia liked the hotel . describe the room and staff :"


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer()


def test_special_tokens_come_first(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer.convert_ids_to_tokens([0, 1, 2, 3]) == ["<pad>", "<s>", "</s>", "<unk>"]
    ids = (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id)
    assert ids == (0, 1, 2, 3)


def test_words_are_sorted_so_that_every_process_builds_the_same(tokenizer: PreTrainedTokenizerFast) -> None:
    vocabulary = tokenizer.convert_ids_to_tokens(list(range(4, len(tokenizer))))
    assert vocabulary == sorted(vocabulary)


def test_ids_are_dense_and_few(tokenizer: PreTrainedTokenizerFast) -> None:
    assert len(tokenizer) == 129
    assert sorted(tokenizer.get_vocab().values()) == list(range(129))


def test_texts_round_trip_without_unknown_words(tokenizer: PreTrainedTokenizerFast) -> None:
    rows = make_demonstrations(0, 200)
    texts = [f"{row['prompt']} {row['completion']}" for row in rows] + [
        row["text"] for row in make_pretraining_text(0, 200)
    ]
    for text in texts:
        ids = tokenizer(text).input_ids
        assert len(ids) == 1 + len(text.split())
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_every_word_of_the_vocabulary_round_trips(tokenizer: PreTrainedTokenizerFast) -> None:
    for word, index in tokenizer.get_vocab().items():
        assert tokenizer(word, add_special_tokens=False).input_ids == [index]


def test_bos_is_put_in_front_once_and_eos_never(tokenizer: PreTrainedTokenizerFast) -> None:
    ids = tokenizer(PROMPT).input_ids
    assert len(ids) == 12
    assert ids[0] == 1
    assert not {1, 2} & set(ids[1:])
    assert tokenizer(PROMPT, add_special_tokens=False).input_ids == ids[1:]


@pytest.mark.parametrize("seam", ["", " "])
def test_prompt_is_a_prefix_whatever_the_seam(tokenizer: PreTrainedTokenizerFast, seam: str) -> None:
    answer = "the room was nice . thanks !"
    parts = tokenizer(PROMPT).input_ids + tokenizer(answer, add_special_tokens=False).input_ids
    assert tokenizer(f"{PROMPT}{seam}{answer}").input_ids == parts


def test_unknown_words_are_marked(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer("the zebra", add_special_tokens=False).input_ids[1] == 3


def test_saved_tokenizer_is_the_same(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert loaded(PROMPT).input_ids == tokenizer(PROMPT).input_ids
    assert loaded.decode(loaded(PROMPT).input_ids, skip_special_tokens=True) == PROMPT
    assert loaded.eos_token_id == 2
