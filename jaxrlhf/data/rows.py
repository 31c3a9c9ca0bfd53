"""Checks rows with standard columns, and turns them into one small dataclass for each kind.

Every check raises `RowError` with the field, what was found, what was expected and what to do; the caller adds where.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxrlhf.data.rowlog import Row, RowError, shown
from jaxrlhf.data.shapes import Kind, missing

Message = dict[str, str]
"""`{"role": "system" | "user" | "assistant", "content": text}`."""

Text = str | list[Message]
"""A prompt or an answer: plain text, or messages for the chat template."""

ROLES = ("system", "user", "assistant")

# NUL, halves of surrogate pairs, which tokenizers refuse, and noncharacters, which `data/chat.py` uses as marks.
_NO_TEXT = re.compile("[\0\ud800-\udfff\ufdd0-\ufdef]")


@dataclasses.dataclass(frozen=True, slots=True)
class SftRow:
    """One text to imitate.

    Attributes:
        where: place in the data, `file:line`.
        prompt: what is read; "" or [] where all of it is imitated.
        completion: what is imitated; of messages, the assistant's.
        terminated: whether the completion ended by itself; False: a length limit cut it off.
        extras: the other columns.
    """

    where: str
    prompt: Text
    completion: Text
    terminated: bool
    extras: Row


@dataclasses.dataclass(frozen=True, slots=True)
class PreferenceRow:
    """Two answers to a prompt.

    Attributes:
        where: place in the data, `file:line`.
        prompt: the prompt.
        chosen: the better answer.
        rejected: the worse answer.
        margin: by how much the first should win; 0 if the data say nothing.
        extras: the other columns.
    """

    where: str
    prompt: Text
    chosen: Text
    rejected: Text
    margin: float
    extras: Row


@dataclasses.dataclass(frozen=True, slots=True)
class UnpairedRow:
    """One answer to a prompt, good or bad.

    Attributes:
        where: place in the data, `file:line`.
        prompt: the prompt.
        completion: the answer.
        desirable: whether it is a good one.
        terminated: whether it ended by itself; False: a length limit cut it off.
        extras: the other columns.
    """

    where: str
    prompt: Text
    completion: Text
    desirable: bool
    terminated: bool
    extras: Row


@dataclasses.dataclass(frozen=True, slots=True)
class RankedRow:
    """K answers to a prompt.

    Attributes:
        where: place in the data, `file:line`.
        prompt: the prompt.
        completions: the K answers.
        ranks: rank of each answer, 1 is best; equal ranks are ties.
        terminated: for each answer, whether it ended by itself; False: a length limit cut it off.
        extras: the other columns.
    """

    where: str
    prompt: Text
    completions: list[Text]
    ranks: list[int]
    terminated: list[bool]
    extras: Row


@dataclasses.dataclass(frozen=True, slots=True)
class PromptRow:
    """A prompt to answer.

    Attributes:
        where: place in the data, `file:line`.
        prompt: the prompt.
        extras: the other columns, for reward functions.
    """

    where: str
    prompt: Text
    extras: Row


AnyRow = SftRow | PreferenceRow | UnpairedRow | RankedRow | PromptRow


def check_row(kind: Kind, where: str, row: Row) -> AnyRow:
    """Checks a row with standard columns.

    Args:
        kind: what the method learns from.
        where: place of the row, kept for later messages.
        row: column name -> value.

    Returns:
        The row as the dataclass of its kind.

    Raises:
        RowError: at the first thing wrong.
    """
    return _CHECKS[kind](where, row)


def is_messages(row: AnyRow) -> bool:
    """Tells whether a row is a conversation rather than plain text."""
    return isinstance(row.completion if isinstance(row, SftRow) else row.prompt, list)


def _sft(where: str, row: Row) -> SftRow:
    if "text" in row:
        return SftRow(where, "", _plain(row["text"], "text"), _terminated(row), _extras(row, "text", "terminated"))
    if "messages" in row:
        messages = _messages(row["messages"], "messages")
        _check_order(messages, "messages", ends="assistant")
        return SftRow(where, [], messages, _terminated(row), _extras(row, "messages", "terminated"))
    prompt, completion = _prompt(row), _answer(row, "completion")
    _check_dialogue(prompt, completion, "completion")
    return SftRow(where, prompt, completion, _terminated(row), _extras(row, "prompt", "completion", "terminated"))


def _preference(where: str, row: Row) -> PreferenceRow:
    prompt = _prompt(row)
    chosen, rejected = _answer(row, "chosen"), _answer(row, "rejected")
    _check_dialogue(prompt, chosen, "chosen")
    _check_dialogue(prompt, rejected, "rejected")
    if chosen == rejected:
        raise RowError("PAIR_SAME", f"'chosen' and 'rejected' are the same, {shown(chosen)}; remove the row")
    extras = _extras(row, "prompt", "chosen", "rejected", "margin")
    return PreferenceRow(where, prompt, chosen, rejected, _margin(row), extras)


def _unpaired(where: str, row: Row) -> UnpairedRow:
    if "messages" in row:
        row = _split_answer(row)
    prompt, completion = _prompt(row), _answer(row, "completion")
    _check_dialogue(prompt, completion, "completion")
    extras = _extras(row, "prompt", "completion", "label", "terminated")
    return UnpairedRow(where, prompt, completion, _label(row), _terminated(row), extras)


def _split_answer(row: Row) -> Row:
    """Makes prompt and completion of a conversation, whose label is that of its last message."""
    messages = _messages(row["messages"], "messages")
    _check_order(messages, "messages", ends="assistant")
    return _extras(row, "messages") | {"prompt": messages[:-1], "completion": messages[-1:]}


def _ranked(where: str, row: Row) -> RankedRow:
    prompt = _prompt(row)
    completions = _required(row, "completions")
    if not isinstance(completions, list) or len(completions) < 2:
        raise RowError("FIELD_TYPE", f"field 'completions' is {shown(completions)}; expected a list of 2 or more")
    answers = [_text(answer, f"completions[{i}]") for i, answer in enumerate(completions)]
    for i, answer in enumerate(answers):
        _check_dialogue(prompt, answer, f"completions[{i}]")
    ranks = _ranks(_required(row, "ranks"), len(answers))
    terminated = _each_terminated(row, len(answers))
    extras = _extras(row, "prompt", "completions", "ranks", "terminated")
    return RankedRow(where, prompt, answers, ranks, terminated, extras)


def _prompt_row(where: str, row: Row) -> PromptRow:
    if "messages" in row and "prompt" not in row:
        row = _drop_answer(row)
    prompt = _prompt(row)
    if isinstance(prompt, list):
        _check_order(prompt, "prompt", ends="user")
    # Under `messages` the index hands on the prompt; a transcript beside it would pass for that.
    return PromptRow(where, prompt, _extras(row, "prompt", "messages"))


def _drop_answer(row: Row) -> Row:
    """Makes a prompt of a conversation; an answer at its end becomes the extra column `completion`."""
    messages = _messages(row["messages"], "messages")
    rest = _extras(row, "messages")
    if messages[-1]["role"] != "assistant":
        return rest | {"prompt": messages}
    return rest | {"prompt": messages[:-1], "completion": messages[-1]["content"]}


_CHECKS: dict[Kind, Callable[[str, Row], AnyRow]] = {
    "sft": _sft,
    "preference": _preference,
    "unpaired": _unpaired,
    "ranked": _ranked,
    "prompt": _prompt_row,
}


def _required(row: Row, name: str) -> Any:
    if name not in row:
        raise RowError("FIELD_MISSING", missing(name, row, "it is required"))
    if row[name] is None:
        raise RowError("FIELD_NULL", f"field {name!r} is null; give it a value or remove the row")
    return row[name]


def _prompt(row: Row) -> Text:
    return _text(_required(row, "prompt"), "prompt")


def _answer(row: Row, name: str) -> Text:
    return _text(_required(row, name), name)


def _text(value: Any, field: str) -> Text:
    return _messages(value, field) if isinstance(value, list) else _plain(value, field)


def _plain(value: Any, field: str) -> str:
    if not isinstance(value, str):
        message = f"field {field!r} is {shown(value)}; expected a string, or a list of messages"
        raise RowError("FIELD_NULL" if value is None else "FIELD_TYPE", message)
    if not value.strip():
        code = field.partition("[")[0].upper() + "_EMPTY"
        raise RowError(code, f"field {field!r} is empty, {shown(value)}; remove the row")
    if bad := _NO_TEXT.search(value):
        message = f"field {field!r} has {bad[0]!r} at character {bad.start()}, which is no text; remove it"
        raise RowError("ENC_CHARACTER", message)
    return value


def _messages(value: Any, field: str) -> list[Message]:
    if not isinstance(value, list):
        raise RowError("FIELD_TYPE", f"field {field!r} is {shown(value)}; expected a list of messages")
    if not value:
        raise RowError("MSG_EMPTY", f"field {field!r} is an empty list; expected messages")
    return [_message(message, f"{field}[{i}]") for i, message in enumerate(value)]


def _message(message: Any, field: str) -> Message:
    if not isinstance(message, Mapping):
        raise RowError("FIELD_TYPE", f"{field} is {shown(message)}; expected {{role: ..., content: ...}}")
    if "role" not in message:
        hint = "; declare data.format=sharegpt" if "from" in message else ""
        raise RowError("MSG_ROLE", f"{field} has no 'role', only {', '.join(map(repr, message))}{hint}")
    if message["role"] not in ROLES:
        raise RowError("MSG_ROLE", f"{field} has role {shown(message['role'])}; expected one of {', '.join(ROLES)}")
    content = message.get("content")
    if not isinstance(content, str):
        raise RowError("MSG_EMPTY", f"{field} has content {shown(content)}; expected a string")
    return {"role": message["role"], "content": _content(content, field)}


def _content(content: str, field: str) -> str:
    try:
        return _plain(content, "content")
    except RowError as error:
        code = "MSG_EMPTY" if error.code.endswith("_EMPTY") else error.code
        raise RowError(code, f"{field}: {error}") from error


def _check_dialogue(prompt: Text, answer: Text, field: str) -> None:
    if isinstance(prompt, str) != isinstance(answer, str):
        forms = ["text" if isinstance(part, str) else "messages" for part in (prompt, answer)]
        raise RowError("FORMAT_MIX", f"'prompt' is {forms[0]} but {field!r} is {forms[1]}; expected the same of both")
    if isinstance(prompt, list) and isinstance(answer, list):
        _check_order(prompt, "prompt", ends="user")
        _check_order(prompt + answer, f"prompt + {field}", ends="assistant")


def _check_order(messages: Sequence[Message], field: str, *, ends: str) -> None:
    """Checks for one system message at most, at the start, and then user and assistant in turn."""
    roles = [message["role"] for message in messages]
    turns = roles[1:] if roles[:1] == ["system"] else roles
    for i, role in enumerate(turns):
        expected = ("user", "assistant")[i % 2]
        if role != expected:
            place = f"{field}[{i + len(roles) - len(turns)}]"
            raise RowError("MSG_ORDER", f"{place} is from {role!r}; expected {expected!r}, as the two take turns")
    if not turns or turns[-1] != ends:
        last = turns[-1] if turns else "system"
        raise RowError("MSG_ORDER", f"field {field!r} ends with a message of {last!r}; expected {ends!r}")


def _margin(row: Row) -> float:
    margin = row.get("margin")
    if margin is None:
        return 0.0
    if isinstance(margin, bool) or not isinstance(margin, (int, float)) or not 0 <= margin < math.inf:
        raise RowError("PAIR_MARGIN", f"field 'margin' is {shown(margin)}; expected a number from 0, or no such column")
    return float(margin)


def _label(row: Row) -> bool:
    label = _required(row, "label")
    if not isinstance(label, bool):
        raise RowError(
            "LABEL_TYPE", f"field 'label' is {shown(label)}; expected true, a good answer, or false, a bad one"
        )
    return label


def _ranks(ranks: Any, count: int) -> list[int]:
    """Checks that ranks are whole numbers from 1; they may leave some out, and only their order counts."""
    if not isinstance(ranks, list) or not all(isinstance(rank, int) and not isinstance(rank, bool) for rank in ranks):
        raise RowError("RANK_BAD", f"field 'ranks' is {shown(ranks)}; expected a list of integers")
    if len(ranks) != count:
        raise RowError("RANK_BAD", f"field 'ranks' is {shown(ranks)}, {len(ranks)} ranks of {count} completions")
    if min(ranks) != 1:
        order = [1 + sum(other < rank for other in ranks) for rank in ranks]
        raise RowError("RANK_BAD", f"field 'ranks' is {shown(ranks)}; expected 1 for the best, as in {order}")
    return ranks


def _terminated(row: Row) -> bool:
    terminated = row.get("terminated")
    if terminated is not None and not isinstance(terminated, bool):
        message = f"field 'terminated' is {shown(terminated)}; expected true or false, or no such column"
        raise RowError("FIELD_TYPE", message)
    return terminated is not False


def _each_terminated(row: Row, count: int) -> list[bool]:
    terminated = row.get("terminated")
    if terminated is None:
        return [True] * count
    if not isinstance(terminated, list) or not all(isinstance(ended, bool) for ended in terminated):
        message = f"field 'terminated' is {shown(terminated)}; expected a list of true and false, or no such column"
        raise RowError("FIELD_TYPE", message)
    if len(terminated) != count:
        message = f"field 'terminated' is {shown(terminated)}, {len(terminated)} values of {count} completions"
        raise RowError("FIELD_TYPE", message)
    return terminated


def _extras(row: Row, *used: str) -> Row:
    return {name: value for name, value in row.items() if name not in used}
