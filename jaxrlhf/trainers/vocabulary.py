"""Whether a tokenizer and a model fit together: every token has a row of the embedding, and some token ends an answer.

The rows may be more than the tokens: many models pad their embedding to a round number. No token stands for such a row,
and it is drawn with the probability that the model gives it, as by transformers.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from jaxrlhf.models.config import ModelConfig
from jaxrlhf.models.folder import read_json

log = logging.getLogger(__name__)

_SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")
_GENERATION = "generation_config.json"


def check_vocabulary(config: ModelConfig, tokenizer: Any, stops: Iterable[int], where: str) -> None:
    """Holds a tokenizer against a model.

    Tokens of text must have rows. Of special tokens without rows there is a warning: some models were published with
    the tokenizer of a larger one, whose tokens for images they never read.

    Args:
        config: of the model.
        tokenizer: a transformers tokenizer.
        stops: tokens that end an answer.
        where: what they belong to, for messages.

    Raises:
        ValueError: if a token has no row; or, of a language model, if no token ends an answer.
    """
    rows = config.vocab_size
    beyond = {number: token for token, number in tokenizer.get_vocab().items() if number >= rows}
    text = sorted(beyond.keys() - _special_ids(tokenizer))
    named = [(f"{name} of the tokenizer", getattr(tokenizer, name)) for name in _SPECIAL]
    named += [("an id that ends an answer", number) for number in stops]
    problems = [f"{name} is {number}" for name, number in named if number is not None and number >= rows]
    if text:
        problems.insert(0, f"token {beyond[text[0]]!r} has id {text[0]}, and {len(text) - 1} more have such ids")
    if problems:
        raise ValueError(
            f"{where}: {'; '.join(problems)}, but the embedding has {rows} rows, 0 to {rows - 1}; use the tokenizer "
            "that the model was published with, or give the model rows for all tokens before "
            "(model.resize_token_embeddings(len(tokenizer)) in transformers)"
        )
    if beyond:
        log.warning("%s: special tokens without a row of the embedding: %s", where, ", ".join(beyond.values()))
    if not config.scalar_head and not [number for number in stops if number is not None]:
        raise ValueError(
            f"{where}: no token ends an answer; set the tokenizer's eos_token, or eos_token_id in {_GENERATION}"
        )


def check_generation_config(config: ModelConfig, folder: Path) -> None:
    """Checks that the ids in a folder's generation_config.json, if it has one, have rows of the embedding.

    Raises:
        ValueError: naming those that have none.
    """
    if not (folder / _GENERATION).exists():
        return
    raw = read_json(folder / _GENERATION)
    ids = {name: raw[name] if isinstance(raw[name], list) else [raw[name]] for name in _SPECIAL if name in raw}
    wrong = [f"{name}={found}" for name, found in ids.items() if not all(_is_row(id, config) for id in found)]
    if wrong:
        raise ValueError(
            f"{folder / _GENERATION}: {', '.join(wrong)}; expected whole numbers below {config.vocab_size}, the rows "
            "of the embedding"
        )


def check_ids(config: ModelConfig, tokenizer: Any, ids: np.ndarray) -> None:
    """Checks that all tokens of the data have rows of the embedding; a special token in a chat template may have none.

    Args:
        config: of the model.
        tokenizer: that made the ids.
        ids: [n_tokens] int32.

    Raises:
        ValueError: naming the largest id that has none.
    """
    largest = int(ids.max(initial=0))
    if largest >= config.vocab_size:
        raise ValueError(
            f"the data hold token {tokenizer.convert_ids_to_tokens(largest)!r} (id {largest}), and the embedding has "
            f"{config.vocab_size} rows; does data.chat_template use a token that the model does not know?"
        )


def _special_ids(tokenizer: Any) -> set[int]:
    return {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}


def _is_row(number: Any, config: ModelConfig) -> bool:
    return number is None or (type(number) is int and number < config.vocab_size)  # -1 stands for none in old files
