"""The layouts of public data sets, each turned into standard columns; `shapes.SHAPES` names them."""

from __future__ import annotations

import os.path
import re
from collections.abc import Callable
from typing import Any, Literal

from jaxrlhf.data.rowlog import Row, RowError, missing, shown

Unused = Literal["tie", "blank"]
"""Why a comparison says nothing: no answer is better, or one was left blank."""


def has(*names: str) -> Callable[[Row], bool]:
    """Returns whether a row has all of some columns."""
    return lambda row: all(name in row for name in names)


def same(row: Row) -> list[Row]:
    """Keeps a row that has standard columns already."""
    return [row]


def _without(row: Row, *names: str) -> Row:
    return {name: value for name, value in row.items() if name not in names}


def _need(row: Row, name: str) -> Any:
    if name not in row:
        raise RowError("FIELD_MISSING", missing(name, row, "the layout needs it"))
    return row[name]


def _string(row: Row, name: str) -> str:
    if not isinstance(_need(row, name), str):
        raise RowError("FIELD_TYPE", f"field {name!r} is {shown(row[name])}; expected a string")
    return row[name]


def _user(text: str) -> Row:
    return {"role": "user", "content": text}


def _assistant(text: str) -> Row:
    return {"role": "assistant", "content": text}


def _request(row: Row) -> Row:
    """The user message of an instruction and its optional input, set apart by a blank line."""
    parts = [_string(row, "instruction")]
    if row.get("input") is not None:
        parts.append(_string(row, "input"))
    return _user("\n\n".join(part for part in parts if part.strip()))


def alpaca(row: Row) -> list[Row]:
    """An instruction, its optional input, and the output, as messages."""
    messages = [_request(row)]
    if "output" in row:
        messages.append(_assistant(_string(row, "output")))
    return [_without(row, "instruction", "input", "output") | {"messages": messages}]


def self_instruct(row: Row) -> list[Row]:
    """One conversation for each instance of an instruction."""
    rest = _without(row, "instances", "instruction")
    instances, instruction = _need(row, "instances"), _string(row, "instruction")
    if not instances or not isinstance(instances, list) or not all(isinstance(item, dict) for item in instances):
        raise RowError("FIELD_TYPE", f"field 'instances' is {shown(instances)}; expected a list of objects")
    return [rest | alpaca({"instruction": instruction} | instance)[0] for instance in instances]


_SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}


def _turn(value: Any, field: str) -> Row:
    if not isinstance(value, dict) or not {"from", "value"} <= set(value):
        raise RowError("MSG_ROLE", f"field {field!r} holds {shown(value)}; expected {{from: human, value: text}}")
    if value["from"] not in _SHAREGPT_ROLES:
        known = ", ".join(_SHAREGPT_ROLES)
        raise RowError("MSG_ROLE", f"field {field!r} has a turn from {shown(value['from'])}; expected one of {known}")
    return {"role": _SHAREGPT_ROLES[value["from"]], "content": value["value"]}


def _turns(value: Any, field: str) -> list[Row]:
    return [_turn(turn, field) for turn in (value if isinstance(value, list) else [value])]


def sharegpt(row: Row) -> list[Row]:
    """Turns of `from` and `value` as messages, or a pair of answers to them."""
    rest = _without(row, "conversations", "system", "chosen", "rejected")
    messages = _turns(_need(row, "conversations"), "conversations")
    if row.get("system"):
        messages.insert(0, {"role": "system", "content": _string(row, "system")})
    if "chosen" not in row:
        return [rest | {"messages": messages}]
    answers = {name: _turns(_need(row, name), name) for name in ("chosen", "rejected")}
    return [rest | {"prompt": messages} | answers]


_HH_MARK = re.compile(r"\n\n(Human|Assistant): ?")


def _hh_messages(row: Row, field: str) -> list[Row]:
    start, *parts = _HH_MARK.split(_string(row, field))
    if start.strip() or not parts:
        raise RowError("FIELD_TYPE", f"field {field!r} is {shown(row[field])}; expected it to begin '\\n\\nHuman: '")
    turns = zip(parts[::2], parts[1::2], strict=True)
    return [_user(text) if speaker == "Human" else _assistant(text) for speaker, text in turns]


def hh(row: Row) -> list[Row]:
    """Two transcripts as a pair of conversations."""
    return [_split_prompt(row, _hh_messages(row, "chosen"), _hh_messages(row, "rejected"))]


def is_hh(row: Row) -> bool:
    """Whether both answers are transcripts that begin with a mark, without a prompt of their own."""
    answers = [row.get("chosen"), row.get("rejected")]
    return "prompt" not in row and all(isinstance(text, str) and _HH_MARK.match(text) for text in answers)


def _split_prompt(row: Row, chosen: Any, rejected: Any) -> Row:
    """Makes explicit the prompt that two answers, both strings or both lists of messages, begin with."""
    if isinstance(chosen, str) and isinstance(rejected, str):
        end = _common_words(chosen, rejected)
    elif isinstance(chosen, list) and isinstance(rejected, list):
        end = _common_turns(chosen, rejected)
    else:
        raise RowError("FIELD_TYPE", "fields 'chosen' and 'rejected' must both be strings, or both lists of messages")
    if end == 0:
        message = "there is no 'prompt', and 'chosen' and 'rejected' do not begin with the same one"
        raise RowError("PAIR_PROMPT", f"{message}: {shown(chosen[:1])} against {shown(rejected[:1])}")
    return row | {"prompt": chosen[:end], "chosen": chosen[end:], "rejected": rejected[end:]}


def _common_words(chosen: str, rejected: str) -> int:
    """Length of the common prefix up to the space before the first word that differs; the space goes to the answer."""
    end = len(os.path.commonprefix([chosen, rejected]))
    while end > 0 and not chosen[end - 1].isspace():
        end -= 1
    return max(end - 1, 0)


def _common_turns(chosen: list[Any], rejected: list[Any]) -> int:
    """Number of leading messages that are equal, up to the last one of the user."""
    equal = [mine == yours for mine, yours in zip(chosen, rejected, strict=False)]
    end = (equal + [False]).index(False)
    while end > 0 and not (isinstance(chosen[end - 1], dict) and chosen[end - 1].get("role") == "user"):
        end -= 1
    return end


def preference(row: Row) -> list[Row]:
    """Makes the prompt explicit that both answers begin with."""
    chosen, prompt = row.get("chosen"), row.get("prompt")
    if isinstance(prompt, str) and _begins_with(chosen, prompt):
        prompt = None  # whole conversations, beside which the prompt is given once more as text
    return [row] if prompt is not None else [_split_prompt(row, chosen, row.get("rejected"))]


def _begins_with(messages: Any, prompt: str) -> bool:
    return isinstance(messages, list) and messages[:1] == [_user(prompt)]


def _request_of(row: Row) -> Any:
    if "prompt" not in row:
        return [_request(row)]
    return [_user(row["prompt"])] if isinstance(row["prompt"], str) else row["prompt"]


def labelled_pairs(row: Row) -> list[Row] | Unused:
    """Two responses and which is better as a pair; nothing where neither is, or one is blank."""
    label, answers = _need(row, "label"), [_string(row, "response1"), _string(row, "response2")]
    if isinstance(label, bool) or label not in (0, 1, 2):
        raise RowError(
            "LABEL_TYPE", f"field 'label' is {shown(label)}; expected 1 or 2, the better answer, or 0, a tie"
        )
    if label == 0 or answers[0] == answers[1]:
        return "tie"
    if not all(answer.strip() for answer in answers):
        return "blank"
    better, worse = answers if label == 1 else answers[::-1]
    rest = _without(row, "prompt", "instruction", "input", "response1", "response2", "label")
    return [rest | {"prompt": _request_of(row), "chosen": [_assistant(better)], "rejected": [_assistant(worse)]}]


def ranked(row: Row) -> list[Row] | Unused:
    """K ranked answers; nothing where all are tied."""
    ranks = row["ranks"]
    return "tie" if isinstance(ranks, list) and ranks and all(rank == ranks[0] for rank in ranks) else [row]


def has_ranked_responses(row: Row) -> bool:
    """Whether `responses` are objects with a rank."""
    responses = row.get("responses")
    return isinstance(responses, list) and all(isinstance(item, dict) and "rank" in item for item in responses)


def kwise_responses(row: Row) -> list[Row] | Unused:
    """Responses of `text` and `rank` as K ranked answers."""
    responses = _need(row, "responses")
    if not has_ranked_responses(row):
        raise RowError(
            "FIELD_TYPE", f"field 'responses' is {shown(responses)}; expected [{{text: ..., rank: ...}}, ...]"
        )
    completions = [[_assistant(_string(item, "text"))] for item in responses]
    ranks = [item["rank"] for item in responses]
    rest = _without(row, "responses", "instruction", "input")
    return ranked(rest | {"prompt": _request_of(row), "completions": completions, "ranks": ranks})


def first_turn(row: Row) -> list[Row]:
    """The first of several turns as the prompt."""
    turns = _need(row, "turns")
    if not isinstance(turns, list) or not turns or not isinstance(turns[0], str):
        raise RowError("FIELD_TYPE", f"field 'turns' is {shown(turns)}; expected a list of strings")
    return [row | {"prompt": [_user(turns[0])]}]


def is_alpaca(row: Row) -> bool:
    """Whether a row has an instruction, and is of no other layout that has one."""
    return "instruction" in row and not {"instances", "responses", "prompt"} & set(row)


def is_preference(row: Row) -> bool:
    """Whether a row has a pair, and is of no other layout that has one."""
    return "chosen" in row and "rejected" in row and "conversations" not in row and not is_hh(row)
