"""What was said in `jaxrlhf chat`, and the commands that change it, look at it and write it down."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from jaxrlhf.commands.files import check_new, write_rows
from jaxrlhf.commands.generate import answer_row
from jaxrlhf.data.fields import Message, Text
from jaxrlhf.data.rowlog import Row, shown

_COMMAND = re.compile(r"/([a-z]+)(?:\s+(.*?))?\s*")


class Turn(NamedTuple):
    """A message and its answer; `terminated` says whether that ended by itself."""

    message: str
    answer: str
    terminated: bool


@dataclasses.dataclass
class Conversation:
    """What was said.

    Attributes:
        system: what stands before the first turn, or None.
        plain: whether messages and answers make one text.
        turns: so far.
    """

    system: str | None
    plain: bool
    turns: list[Turn] = dataclasses.field(default_factory=list)

    def until(self, message: str, turns: int | None = None) -> Text:
        """What a message and the turns before it say; None means all turns."""
        before = self.turns[:turns]
        if self.plain:
            return "".join(turn.message + turn.answer for turn in before) + message
        first = [] if self.system is None else [_message("system", self.system)]
        said = [_message(*part) for turn in before for part in (("user", turn.message), ("assistant", turn.answer))]
        return [*first, *said, _message("user", message)]

    def rows(self) -> list[Row]:
        """A row for each answer that is not empty, as `generate` writes it."""
        rows = []
        for number, turn in enumerate(self.turns):
            said = self.until(turn.message, number)
            prompt = {"prompt": said} if isinstance(said, str) else {"prompt": "", "messages": said}
            if turn.answer.strip():
                rows.append(answer_row(prompt, [turn.answer], [turn.terminated]))
        return rows


def obey(conversation: Conversation, line: str) -> str | None:
    """Does what a command asks for.

    Args:
        conversation: what was said, which the command may change.
        line: what was typed.

    Returns:
        What to say about it, or None if the line is no command.
    """
    command = _COMMAND.fullmatch(line)
    if command is None:
        return None
    name, argument = command.groups()
    if name not in _COMMANDS:
        return f"there is no /{name}; /help lists the commands"
    return _COMMANDS[name](conversation, argument)


def _help(conversation: Conversation, argument: str | None) -> str:
    typed = "what you type is put behind the text; an empty line goes on" if conversation.plain else "type a message"
    return (
        f"{typed}; /undo takes the last turn back, /reset all of them; /save FILE writes rows for sft; /quit leaves; "
        "Ctrl-C stops an answer"
    )


def _reset(conversation: Conversation, argument: str | None) -> str:
    conversation.turns.clear()
    return "a new conversation"


def _undo(conversation: Conversation, argument: str | None) -> str:
    if not conversation.turns:
        return "there is no turn to take back"
    return f"took back {shown(conversation.turns.pop().message)} and its answer"


def _save(conversation: Conversation, argument: str | None) -> str:
    rows = conversation.rows()
    if not argument or not rows:
        return "name a file: /save FILE" if rows else "there is no answer to write"
    path = Path(argument).expanduser()
    try:
        check_new(str(path), "the conversation")
        write_rows(path, rows)
    except (ValueError, OSError) as error:
        return str(error)
    empty = len(conversation.turns) - len(rows)
    return f"wrote {len(rows)} answers to {path}" + (f", left out {empty} empty ones" if empty else "")


_COMMANDS: dict[str, Callable[[Conversation, str | None], str]] = {
    "help": _help,
    "reset": _reset,
    "undo": _undo,
    "save": _save,
}


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}
