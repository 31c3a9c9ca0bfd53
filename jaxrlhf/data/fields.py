"""Checks of one field of a row: text, messages, ranks, labels.

Every check raises `RowError` with the field, what was found, what was expected and what to do.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from jaxrlhf.data.rowlog import Row, RowError, missing, shown

Message = dict[str, str]
"""`{"role": "system" | "user" | "assistant", "content": text}`."""

Text = str | list[Message]
"""A prompt or an answer: plain text, or messages for the chat template."""

ROLES = ("system", "user", "assistant")

# NUL, halves of surrogate pairs, which tokenizers refuse, and noncharacters, which `data/chat.py` uses as marks.
_NO_TEXT = re.compile("[\0\ud800-\udfff\ufdd0-\ufdef]")


def required(row: Row, name: str) -> Any:
    """Returns the value of a column that must be there, and not null."""
    if name not in row:
        raise RowError("FIELD_MISSING", missing(name, row, "it is required"))
    if row[name] is None:
        raise RowError("FIELD_NULL", f"field {name!r} is null; give it a value or remove the row")
    return row[name]


def prompt_of(row: Row) -> Text:
    """Returns the prompt of a row, checked."""
    return text_of(required(row, "prompt"), "prompt")


def answer_of(row: Row, name: str) -> Text:
    """Returns an answer of a row, checked."""
    return text_of(required(row, name), name)


def text_of(value: Any, field: str) -> Text:
    """Checks text or messages."""
    return messages_of(value, field) if isinstance(value, list) else plain_text(value, field)


def plain_text(value: Any, field: str) -> str:
    """Checks a string: not empty, and nothing in it that is no text."""
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


def messages_of(value: Any, field: str) -> list[Message]:
    """Checks a list of messages."""
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
        return plain_text(content, "content")
    except RowError as error:
        code = "MSG_EMPTY" if error.code.endswith("_EMPTY") else error.code
        raise RowError(code, f"{field}: {error}") from error


def check_dialogue(prompt: Text, answer: Text, field: str) -> None:
    """Checks that an answer goes with its prompt: both text, or both messages in turn."""
    if isinstance(prompt, str) != isinstance(answer, str):
        forms = ["text" if isinstance(part, str) else "messages" for part in (prompt, answer)]
        raise RowError("FORMAT_MIX", f"'prompt' is {forms[0]} but {field!r} is {forms[1]}; expected the same of both")
    if isinstance(prompt, list) and isinstance(answer, list):
        check_order(prompt, "prompt", ends="user")
        check_order(prompt + answer, f"prompt + {field}", ends="assistant")


def check_order(messages: Sequence[Message], field: str, *, ends: str) -> None:
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


def margin_of(row: Row) -> float:
    """Returns by how much chosen should win, 0 where the row does not say."""
    margin = row.get("margin")
    if margin is None:
        return 0.0
    if isinstance(margin, bool) or not isinstance(margin, (int, float)) or not 0 <= margin < math.inf:
        raise RowError("PAIR_MARGIN", f"field 'margin' is {shown(margin)}; expected a number from 0, or no such column")
    return float(margin)


def label_of(row: Row) -> bool:
    """Returns whether an answer is good."""
    label = required(row, "label")
    if not isinstance(label, bool):
        raise RowError(
            "LABEL_TYPE", f"field 'label' is {shown(label)}; expected true, a good answer, or false, a bad one"
        )
    return label


def ranks_of(ranks: Any, count: int) -> list[int]:
    """Checks that ranks are whole numbers from 1; they may leave some out, and only their order counts."""
    if not isinstance(ranks, list) or not all(isinstance(rank, int) and not isinstance(rank, bool) for rank in ranks):
        raise RowError("RANK_BAD", f"field 'ranks' is {shown(ranks)}; expected a list of integers")
    if len(ranks) != count:
        raise RowError("RANK_BAD", f"field 'ranks' is {shown(ranks)}, {len(ranks)} ranks of {count} completions")
    if min(ranks) != 1:
        order = [1 + sum(other < rank for other in ranks) for rank in ranks]
        raise RowError("RANK_BAD", f"field 'ranks' is {shown(ranks)}; expected 1 for the best, as in {order}")
    return ranks


def terminated_of(row: Row) -> bool:
    """Returns whether an answer ended by itself, which it did unless the row denies it."""
    terminated = row.get("terminated")
    if terminated is not None and not isinstance(terminated, bool):
        message = f"field 'terminated' is {shown(terminated)}; expected true or false, or no such column"
        raise RowError("FIELD_TYPE", message)
    return terminated is not False


def each_terminated(row: Row, count: int) -> list[bool]:
    """Returns the same for each of K answers."""
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


def extras_of(row: Row, *used: str) -> Row:
    """Returns the columns besides those that were used."""
    return {name: value for name, value in row.items() if name not in used}
