"""From prompts and answers, text or messages, to the pieces that are encoded by themselves.

Prompt and answer are pieces of their own. In conversations the seams are where an assistant turn begins and ends, which
rendering by the chat template, a message more each time, tells.
"""

from __future__ import annotations

import re

import jinja2

from jaxrlhf.data.encoder import Encoder, Piece
from jaxrlhf.data.fields import Message, Text
from jaxrlhf.data.rowlog import RowError, shown
from jaxrlhf.data.templates import BUILT_IN

# Unicode noncharacters: they hide the names of special tokens in the data from the chat template's special tokens.
_OPEN, _CLOSE = "\ufdd0", "\ufdd1"


_HIDDEN = re.compile(f"{_OPEN}([0-9]+){_CLOSE}")


def check_template(encoder: Encoder, where: str) -> None:
    """Raises ValueError if there is no template for the conversation at `where`."""
    if encoder.template is None:
        raise ValueError(
            f"{where}: the row is a conversation, and the tokenizer has no chat template; set data.chat_template to "
            f"{', '.join(BUILT_IN)}, or to the path of a jinja file, or start from a model whose tokenizer has one"
        )


def split_answer(encoder: Encoder, prompt: Text, completion: Text, *, terminated: bool = True) -> list[Piece]:
    """Splits a prompt and its answer into pieces to encode.

    Args:
        encoder: the encoder.
        prompt: text or messages; "" or [] if all is to be imitated.
        completion: what is imitated; of messages, the assistant's.
        terminated: whether the completion ended by itself; where it was cut off, neither an end-of-sequence token nor
            the template's end of the turn follows.

    Returns:
        The pieces, in order.

    Raises:
        RowError: if the chat template refuses the messages, changes earlier turns when later ones follow, or hides
            where the content of a cut-off turn ends.
    """
    if isinstance(prompt, str) and isinstance(completion, str):
        pieces = [Piece(prompt, False, False, bos=True)] if prompt else []
        pieces.append(Piece(completion, True, bool(prompt), bos=not prompt, eos=terminated))
    elif isinstance(prompt, list) and isinstance(completion, list):
        pieces = _conversation(encoder, prompt + completion, first=len(prompt), terminated=terminated)
    else:
        raise TypeError("prompt and completion must both be text or both messages")
    return [piece._replace(trained=True) for piece in pieces] if encoder.train_prompts else pieces


def split_prompt(encoder: Encoder, prompt: Text) -> list[Piece]:
    """Returns the pieces of a prompt to continue; their ids begin those of `split_answer` for the same prompt.

    Raises:
        RowError: if the chat template refuses the messages.
    """
    if isinstance(prompt, str):
        return [Piece(prompt, False, False, bos=True)]
    text = _render(encoder, _hide(encoder, prompt), answer_next=True)
    return _unhide(encoder, Piece(text, False, False, special=True))


def prompt_text(encoder: Encoder, prompt: Text) -> str:
    """Returns a prompt as the text that a model reads."""
    return prompt if isinstance(prompt, str) else _render(encoder, prompt, answer_next=True)


def holds_special_token(encoder: Encoder, text: Text) -> bool:
    """Tells whether data hold the name of a special token, such as `</s>`; it is encoded as plain text."""
    parts = [text] if isinstance(text, str) else [message["content"] for message in text]
    starts = {token[0] for token in encoder.special_tokens}  # few, so most texts are done before the many tokens
    likely = [part for part in parts if any(start in part for start in starts)]
    return any(token in part for part in likely for token in encoder.special_tokens)


def _conversation(encoder: Encoder, messages: list[Message], *, first: int, terminated: bool) -> list[Piece]:
    """Splits a conversation at the assistant turns from message `first` on; these are trained.

    A turn is what rendering one more message adds, so it ends as the template ends it, unless the last was cut off.
    """
    hidden = _hide(encoder, messages)
    pieces: list[Piece] = []
    done = ""
    for i in range(first, len(messages)):
        if messages[i]["role"] != "assistant":
            continue
        header = _render(encoder, hidden[:i], answer_next=True)
        through = _render(encoder, hidden[: i + 1], answer_next=False)
        _check_prefix(done, header, i)
        _check_prefix(header, through, i)
        turn = through.removeprefix(header)
        if not turn.strip():
            raise RowError("MASK_NONE", f"the chat template leaves nothing of message {i}, {shown(messages[i])}")
        is_last = i == len(messages) - 1
        if is_last and not terminated:
            answer, eos = _cut_content(turn, hidden[i]["content"]), False
        else:
            answer, ended = _cut_turn(encoder, turn)
            eos = is_last and not ended
        pieces.append(Piece(header.removeprefix(done), False, bool(done), special=True))
        pieces.append(Piece(answer, True, True, special=True, eos=eos))
        done = header + answer
    return [part for piece in pieces for part in _unhide(encoder, piece)]


def _cut_turn(encoder: Encoder, turn: str) -> tuple[str, bool]:
    """Cuts a rendered turn after its end-of-turn token and tells whether there is one; nobody draws what follows it."""
    stripped = turn.rstrip()
    ended = stripped.endswith(encoder.special_tokens)
    return (stripped if ended else turn), ended


def _cut_content(turn: str, content: str) -> str:
    """Cuts a rendered turn after its content; templates may trim that, or put white space before it."""
    before, found, _ = turn.partition(content.strip())
    if not found or before.strip():
        raise RowError(
            "TEMPLATE_CONTENT",
            f"the answer was cut off ('terminated' is false), and the chat template does not begin its turn with it: "
            f"{shown(turn)}; remove the row, or set data.chat_template to one that does",
        )
    return before + found


def _render(encoder: Encoder, messages: list[Message], *, answer_next: bool) -> str:
    try:
        text = encoder.tokenizer.apply_chat_template(
            messages, chat_template=encoder.template, add_generation_prompt=answer_next, tokenize=False
        )
    except jinja2.TemplateError as error:
        raise RowError("MSG_TEMPLATE", f"the chat template refuses the conversation: {error}") from error
    return str(text)


def _check_prefix(start: str, whole: str, i: int) -> None:
    if not whole.startswith(start):
        at = next((k for k, (a, b) in enumerate(zip(start, whole, strict=False)) if a != b), len(whole))
        raise RowError(
            "TEMPLATE_PREFIX",
            f"the chat template rewrites what stands before message {i}: {shown(start[at:])} becomes "
            f"{shown(whole[at:])}; the mask would be wrong, so set data.chat_template to one that only appends",
        )


def _hide(encoder: Encoder, messages: list[Message]) -> list[Message]:
    """Replaces the names of special tokens in messages by marks that no tokenizer knows."""
    if not holds_special_token(encoder, messages):
        return messages
    hidden = []
    for message in messages:
        content = message["content"]
        for number, token in enumerate(encoder.special_tokens):
            content = content.replace(token, f"{_OPEN}{number}{_CLOSE}")
        hidden.append(message | {"content": content})
    return hidden


def _unhide(encoder: Encoder, piece: Piece) -> list[Piece]:
    """Splits a piece at the marks of `_hide`, which become plain text again."""
    parts = _HIDDEN.split(piece.text)
    if len(parts) == 1:
        return [piece]
    pieces = []
    for i, part in enumerate(parts):
        is_mark = i % 2 == 1
        text = encoder.special_tokens[int(part)] if is_mark else part
        pieces.append(piece._replace(text=text, special=not is_mark, continued=piece.continued or i > 0, eos=False))
    pieces[-1] = pieces[-1]._replace(eos=piece.eos)
    return [part for part in pieces if part.text or part.eos]
