"""From pieces of text to token ids, with a mask of the tokens to imitate.

Pieces are encoded apart and then joined. The sampler continues from the ids of the prompt, so an answer in the training
data must follow those same ids, even where encoding the joined text would merge characters across the seam. The mask is
made from the lengths of the pieces and never from the ids, so padding may share its id with the end-of-sequence token.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jaxrlhf.data.config import DataConfig
from jaxrlhf.data.rowlog import shown
from jaxrlhf.data.templates import chat_template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclasses.dataclass(frozen=True, kw_only=True)
class Encoder:
    """A tokenizer and what was found out about it.

    Attributes:
        tokenizer: a transformers tokenizer.
        bos: the id that it puts in front of text, or None.
        eos: the id that ends an answer, or None if none is to be added.
        template: jinja text for conversations, or None.
        special_tokens: the texts that it would read as special tokens.
        anchors: texts that may stand before the continuation of a text while it is encoded. A tokenizer that puts a
            space before each text would otherwise put one in the middle. ("",): there is no need.
        train_prompts: whether prompts are imitated too.
    """

    tokenizer: PreTrainedTokenizerBase
    bos: int | None
    eos: int | None
    template: str | None
    special_tokens: tuple[str, ...]
    anchors: tuple[str, ...]
    train_prompts: bool


class Piece(NamedTuple):
    """A part of a sequence that is encoded by itself.

    Attributes:
        text: the text.
        trained: whether its tokens are imitated.
        continued: whether text stands before it.
        special: whether names of special tokens in it mean those tokens.
        bos: whether the beginning-of-sequence token is put before it.
        eos: whether the end-of-sequence token is put after it.
    """

    text: str
    trained: bool
    continued: bool
    special: bool = False
    bos: bool = False
    eos: bool = False


class Encoded(NamedTuple):
    """One sequence.

    Attributes:
        ids: [n] int32, token ids.
        mask: [n] bool, True at tokens to imitate; False at the first, which nothing precedes.
        prompt: number of ids before the first piece to imitate.
    """

    ids: np.ndarray
    mask: np.ndarray
    prompt: int


def make_encoder(tokenizer: PreTrainedTokenizerBase, config: DataConfig) -> Encoder:
    """Finds out what the tokenizer does and which chat template to use.

    Args:
        tokenizer: a transformers tokenizer.
        config: reads `add_eos`, `chat_template` and `completion_only`.

    Returns:
        The encoder.

    Raises:
        ValueError: if an end-of-sequence token is wanted and there is none, or the template is unknown.
    """
    bos: Any = tokenizer.bos_token_id
    eos: Any = tokenizer.eos_token_id
    if config.add_eos and eos is None:
        raise ValueError("the tokenizer has no end-of-sequence token; set its eos_token, or data.add_eos=false")
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    adds_bos = bos is not None and tokenizer("a")["input_ids"][: 1 + len(plain)] == [bos, *plain]
    added = (token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
    prefixes_space = tokenizer.convert_ids_to_tokens(plain)[0].startswith(("\u2581", "\u0120"))  # "▁" and "Ġ"
    return Encoder(
        tokenizer=tokenizer,
        bos=bos if adds_bos else None,
        eos=eos if config.add_eos else None,
        template=chat_template(tokenizer, config.chat_template, adds_bos=adds_bos),
        special_tokens=tuple(sorted({*tokenizer.all_special_tokens, *added}, key=lambda token: (-len(token), token))),
        anchors=("\n", "a", ".") if prefixes_space else ("",),
        train_prompts=not config.completion_only,
    )


def with_template(tokenizer: PreTrainedTokenizerBase, config: DataConfig) -> PreTrainedTokenizerBase:
    """Returns the tokenizer to export beside a model: it carries the chat template that the model was trained with.

    Args:
        tokenizer: a transformers tokenizer; it is not changed.
        config: as for `make_encoder`.

    Returns:
        A copy with the template of `config.chat_template`, or the tokenizer itself if that is None.

    Raises:
        ValueError: as `make_encoder`.
    """
    if config.chat_template is None:
        return tokenizer
    chosen = copy.deepcopy(tokenizer)
    chosen.chat_template = make_encoder(tokenizer, config).template
    return chosen


def encode(encoder: Encoder, sequences: Sequence[Sequence[Piece]]) -> list[Encoded]:
    """Encodes many sequences, all their pieces in a few calls of the tokenizer.

    Args:
        encoder: the encoder.
        sequences: the pieces of each sequence.

    Returns:
        The ids and mask of each sequence.
    """
    pieces = [piece for sequence in sequences for piece in sequence]
    ids: list[list[int]] = [[] for _ in pieces]
    for continued in (False, True):
        for special in (False, True):
            chosen = [i for i, piece in enumerate(pieces) if (piece.continued, piece.special) == (continued, special)]
            encoded = _tokenize(encoder, [pieces[i].text for i in chosen], continued, special)
            for i, piece_ids in zip(chosen, encoded, strict=True):
                ids[i] = piece_ids
    remaining = iter(ids)
    return [_join(encoder, [(piece, next(remaining)) for piece in sequence]) for sequence in sequences]


def answer_decoder(tokenizer: PreTrainedTokenizerBase) -> Callable[[np.ndarray], str]:
    """Builds the function that decodes ids [n] of an answer so that they continue a prompt, without special tokens.

    Decoded alone, an answer would lose the space that it begins with to tokenizers that put one before each text.
    """
    anchor = tokenizer("a", add_special_tokens=False)["input_ids"]
    start = str(tokenizer.decode(anchor, skip_special_tokens=True))  # "" if the tokenizer does not know the letter

    def decode(ids: np.ndarray) -> str:
        return str(tokenizer.decode([*anchor, *ids.tolist()], skip_special_tokens=True)).removeprefix(start)

    return decode


def answer_texts(
    tokenizer: PreTrainedTokenizerBase, tokens: np.ndarray, lengths: np.ndarray, terminated: np.ndarray
) -> list[str]:
    """Decodes answers so that each continues its prompt, as `split_answer` reads it.

    Args:
        tokenizer: a transformers tokenizer.
        tokens: [B, R] int32, the ids of the answers.
        lengths: [B] int, how many of them were drawn.
        terminated: [B] bool, whether the last of those ended the answer; it is no part of the text then, even where the
            tokenizer does not count it as a special token.

    Returns:
        The texts, without special tokens.
    """
    decode = answer_decoder(tokenizer)
    return [decode(row[:end]) for row, end in zip(tokens, lengths - terminated, strict=True)]


def token_named(encoder: Encoder, text: str) -> int:
    """The id of a token that is named in the vocabulary, or of the one token that a text is in the middle of another.

    Raises:
        ValueError: if the text is none, or several.
    """
    known = encoder.tokenizer.get_vocab().get(text)
    if known is not None:
        return known
    (ids,) = _tokenize(encoder, [text], True, False)
    if len(ids) == 1 and answer_decoder(encoder.tokenizer)(np.array(ids)).strip() == text.strip():  # and is not unknown
        return ids[0]
    names = encoder.tokenizer.convert_ids_to_tokens(ids)
    raise ValueError(f"{shown(text)} is not one token of the vocabulary but {names}; name one")


def _join(encoder: Encoder, pieces: list[tuple[Piece, list[int]]]) -> Encoded:
    ids: list[int] = []
    mask: list[bool] = []
    prompt: int | None = None
    for piece, piece_ids in pieces:
        if piece.bos and encoder.bos is not None:
            ids.append(encoder.bos)
            mask.append(False)
        if piece.trained and prompt is None:
            prompt = len(ids)
        new = piece_ids + ([encoder.eos] if piece.eos and encoder.eos is not None else [])
        ids += new
        mask += [piece.trained] * len(new)
    mask[:1] = [False] * len(mask[:1])
    return Encoded(np.array(ids, np.int32), np.array(mask, bool), len(ids) if prompt is None else prompt)


def _tokenize(encoder: Encoder, texts: list[str], continued: bool, special: bool) -> list[list[int]]:
    results: list[list[int] | None] = [None] * len(texts)
    for anchor in encoder.anchors if continued else ("",):
        left = [i for i, ids in enumerate(results) if ids is None]
        for i, ids in zip(left, _tokenize_after(encoder, anchor, [texts[i] for i in left], special), strict=True):
            results[i] = ids
    lost = next((text for text, ids in zip(texts, results, strict=True) if ids is None), None)
    if lost is not None:
        raise ValueError(f"the tokenizer has no way to encode {shown(lost)} as the continuation of a text")
    return [ids for ids in results if ids is not None]


def _tokenize_after(encoder: Encoder, anchor: str, texts: list[str], special: bool) -> list[list[int] | None]:
    """Encodes texts as they stand after `anchor`; None where a token spans the seam."""
    if not texts:
        return []
    options: dict[str, Any] = {"add_special_tokens": False, "split_special_tokens": not special, "verbose": False}
    before = encoder.tokenizer(anchor, **options)["input_ids"] if anchor else []
    encoded = encoder.tokenizer([anchor + text for text in texts], **options)["input_ids"]
    return [ids[len(before) :] if ids[: len(before)] == before else None for ids in encoded]
