"""Checks rows with standard columns, and turns them into one small dataclass for each kind.

Every check raises `RowError` with the field, what was found, what was expected and what to do; the caller adds where.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from jaxrlhf.data.fields import (
    Text,
    answer_of,
    check_dialogue,
    check_order,
    each_terminated,
    extras_of,
    label_of,
    margin_of,
    messages_of,
    plain_text,
    prompt_of,
    ranks_of,
    required,
    terminated_of,
    text_of,
)
from jaxrlhf.data.rowlog import Row, RowError, shown
from jaxrlhf.data.shapes import Kind


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
        return SftRow(
            where, "", plain_text(row["text"], "text"), terminated_of(row), extras_of(row, "text", "terminated")
        )
    if "messages" in row:
        messages = messages_of(row["messages"], "messages")
        check_order(messages, "messages", ends="assistant")
        return SftRow(where, [], messages, terminated_of(row), extras_of(row, "messages", "terminated"))
    prompt, completion = prompt_of(row), answer_of(row, "completion")
    check_dialogue(prompt, completion, "completion")
    return SftRow(where, prompt, completion, terminated_of(row), extras_of(row, "prompt", "completion", "terminated"))


def _preference(where: str, row: Row) -> PreferenceRow:
    prompt = prompt_of(row)
    chosen, rejected = answer_of(row, "chosen"), answer_of(row, "rejected")
    check_dialogue(prompt, chosen, "chosen")
    check_dialogue(prompt, rejected, "rejected")
    if chosen == rejected:
        raise RowError("PAIR_SAME", f"'chosen' and 'rejected' are the same, {shown(chosen)}; remove the row")
    extras = extras_of(row, "prompt", "chosen", "rejected", "margin")
    return PreferenceRow(where, prompt, chosen, rejected, margin_of(row), extras)


def _unpaired(where: str, row: Row) -> UnpairedRow:
    if "messages" in row:
        row = _split_answer(row)
    prompt, completion = prompt_of(row), answer_of(row, "completion")
    check_dialogue(prompt, completion, "completion")
    extras = extras_of(row, "prompt", "completion", "label", "terminated")
    return UnpairedRow(where, prompt, completion, label_of(row), terminated_of(row), extras)


def _split_answer(row: Row) -> Row:
    """Makes prompt and completion of a conversation, whose label is that of its last message."""
    messages = messages_of(row["messages"], "messages")
    check_order(messages, "messages", ends="assistant")
    return extras_of(row, "messages") | {"prompt": messages[:-1], "completion": messages[-1:]}


def _ranked(where: str, row: Row) -> RankedRow:
    prompt = prompt_of(row)
    completions = required(row, "completions")
    if not isinstance(completions, list) or len(completions) < 2:
        raise RowError("FIELD_TYPE", f"field 'completions' is {shown(completions)}; expected a list of 2 or more")
    answers = [text_of(answer, f"completions[{i}]") for i, answer in enumerate(completions)]
    for i, answer in enumerate(answers):
        check_dialogue(prompt, answer, f"completions[{i}]")
    ranks = ranks_of(required(row, "ranks"), len(answers))
    terminated = each_terminated(row, len(answers))
    extras = extras_of(row, "prompt", "completions", "ranks", "terminated")
    return RankedRow(where, prompt, answers, ranks, terminated, extras)


def _prompt_row(where: str, row: Row) -> PromptRow:
    if "messages" in row and "prompt" not in row:
        row = _drop_answer(row)
    prompt = prompt_of(row)
    if isinstance(prompt, list):
        check_order(prompt, "prompt", ends="user")
    # Under `messages` the index hands on the prompt; a transcript beside it would pass for that.
    return PromptRow(where, prompt, extras_of(row, "prompt", "messages"))


def _drop_answer(row: Row) -> Row:
    """Makes a prompt of a conversation; an answer at its end becomes the extra column `completion`."""
    messages = messages_of(row["messages"], "messages")
    rest = extras_of(row, "messages")
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
