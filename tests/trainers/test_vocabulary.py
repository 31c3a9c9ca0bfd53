import json
import logging

import numpy as np
import pytest

from jaxrlhf.demo.tokenizer import build_tokenizer
from jaxrlhf.trainers.vocabulary import check_generation_config, check_ids, check_vocabulary
from tests.trainers.small import start

CONFIG = start().config
ROWS = CONFIG.vocab_size


def test_a_tokenizer_with_as_many_tokens_as_rows_or_fewer_fits():
    tokenizer = build_tokenizer()
    assert len(tokenizer) <= ROWS
    check_vocabulary(CONFIG, tokenizer, [tokenizer.eos_token_id], "model")


def test_a_token_without_a_row_is_named():
    tokenizer = build_tokenizer()
    tokenizer.add_tokens([f"word{number}" for number in range(ROWS - len(tokenizer) + 2)])
    message = rf"model=x: token 'word\d+' has id {ROWS}, and 1 more have such ids, but the embedding has {ROWS} rows"
    with pytest.raises(ValueError, match=message):
        check_vocabulary(CONFIG, tokenizer, [1], "model=x")


def test_a_special_token_without_a_row_is_warned_of_and_may_not_be_used(caplog):
    tokenizer = build_tokenizer()
    extra = [f"<image{number}>" for number in range(ROWS - len(tokenizer) + 1)]
    tokenizer.add_tokens(extra, special_tokens=True)
    with caplog.at_level(logging.WARNING):
        check_vocabulary(CONFIG, tokenizer, [1], "model")
    assert f"special tokens without a row of the embedding: {extra[-1]}" in caplog.text
    with pytest.raises(ValueError, match=f"the data hold token '{extra[-1]}' .id {ROWS}., and the embedding has"):
        check_ids(CONFIG, tokenizer, np.array([1, ROWS, 2]))
    check_ids(CONFIG, tokenizer, np.array([1, ROWS - 1]))
    with pytest.raises(ValueError, match=f"an id that ends an answer is {ROWS}"):
        check_vocabulary(CONFIG, tokenizer, [1, ROWS], "model")
    tokenizer.eos_token = extra[-1]
    with pytest.raises(ValueError, match=f"eos_token_id of the tokenizer is {ROWS}, but the embedding"):
        check_vocabulary(CONFIG, tokenizer, [1], "model")


def test_a_language_model_needs_a_token_that_ends_an_answer():
    tokenizer = build_tokenizer()
    with pytest.raises(ValueError, match="model: no token ends an answer; set the tokenizer's eos_token"):
        check_vocabulary(CONFIG, tokenizer, [], "model")
    with pytest.raises(ValueError, match="no token ends an answer"):
        check_vocabulary(CONFIG, tokenizer, [None], "model")


def test_ids_of_a_generation_config_are_checked(tmp_path):
    check_generation_config(CONFIG, tmp_path)
    file = tmp_path / "generation_config.json"
    file.write_text(json.dumps({"eos_token_id": [1, 2], "pad_token_id": -1, "bos_token_id": None}))
    check_generation_config(CONFIG, tmp_path)
    file.write_text(json.dumps({"eos_token_id": [1, ROWS], "pad_token_id": "<pad>"}))
    with pytest.raises(
        ValueError, match=rf"config.json: eos_token_id=\[1, {ROWS}\], pad_token_id=\['<pad>'\]; expected"
    ):
        check_generation_config(CONFIG, tmp_path)
