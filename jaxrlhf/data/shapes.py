"""Layouts of public data sets, and how each becomes the standard columns.

The standard columns are TRL's: `text`; `messages`; `prompt`, `completion`; `prompt`, `chosen`, `rejected` (the prompt
may be left out and is then what both begin with); `prompt`, `completion`, `label`; `prompt`, `completions`, `ranks`;
`prompt`. Beside `completion` may stand `terminated`, true or false, and beside `completions` a list of them: no end is
taught where a length limit cut an answer off (false). Every layout of one answer may carry a `label`, true where the
answer is good; in a conversation it is the last message's. Layouts that tell a request from an answer (alpaca,
sharegpt, hh ...) become messages, so that the chat template says how the two are told apart; strings under `prompt` and
`completion` are joined as they are. Hence questions and answers become plain text with `columns: {prompt: question,
completion: answer}`, and conversations with `columns: {instruction: question, output: answer}`. Columns that a layout
does not use stay.
"""

from __future__ import annotations

import difflib
import os.path
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

from jaxrlhf.data.config import Format
from jaxrlhf.data.rowlog import Row, RowError, shown

Kind = Literal["sft", "preference", "unpaired", "ranked", "prompt"]
"""What a method learns from: texts, pairs, single answers with a label, K ranked answers, or prompts to answer."""

Unused = Literal["tie", "blank"]
"""Why a comparison says nothing: no answer is better, or one was left blank."""


class Shape(NamedTuple):
    """One layout of rows.

    Attributes:
        kinds: the kinds that it can feed.
        columns: the columns that it needs, for messages.
        fits: whether a row looks like it.
        convert: row -> rows with standard columns, or why there are none. Raises RowError.
        hides: standard columns of another layout, which would be read in place of this one's where a row has both.
    """

    kinds: tuple[Kind, ...]
    columns: str
    fits: Callable[[Row], bool]
    convert: Callable[[Row], list[Row] | Unused]
    hides: tuple[str, ...] = ()


def rename(row: Row, columns: Mapping[str, str]) -> Row:
    """Returns the row with its columns renamed.

    Args:
        row: a raw row.
        columns: standard name -> name in the row.

    Raises:
        RowError: if a column is missing, or a new name is taken.
    """
    for ours, theirs in columns.items():
        if theirs not in row:
            raise RowError("FIELD_MISSING", missing(theirs, row, f"data.columns takes {ours!r} from it"))
        if ours in row and ours not in columns.values():
            raise RowError("FIELD_TAKEN", f"data.columns calls {theirs!r} {ours!r}, but a column {ours!r} exists")
    kept = {name: value for name, value in row.items() if name not in columns.values()}
    return kept | {ours: row[theirs] for ours, theirs in columns.items()}


def detect(kind: Kind, row: Row) -> Format:
    """Returns the one layout for `kind` that a row fits.

    Raises:
        ValueError: if it fits none or several, or if it also carries the true/false labels of KTO.
    """
    fitting: list[Format] = [name for name, shape in SHAPES.items() if kind in shape.kinds and shape.fits(row)]
    if not fitting and "completions" in row:
        raise ValueError(
            "the row has 'completions', and no 'ranks' beside them; add ranks, a list with 1 for the best answer"
            if "ranks" not in row
            else f"the row has ranked answers, and {kind!r} is needed; of ranks make pairs, 'chosen' and 'rejected'"
        )
    if not fitting:
        known = [f"{name} ({shape.columns})" for name, shape in SHAPES.items() if kind in shape.kinds]
        raise ValueError(
            f"columns {', '.join(row)} fit no layout for {kind!r}; expected one of {'; '.join(known)}. "
            f"Name them in data.columns, for instance {_example(kind, row)}"
        )
    if len(fitting) > 1:
        raise ValueError(f"columns {', '.join(row)} fit {' and '.join(fitting)}; choose one with data.format")
    if kind == "sft" and isinstance(row.get("label"), bool):
        raise ValueError(
            "the true/false column 'label' marks answers as good or bad, and SFT would imitate both; remove the bad "
            f"rows, or declare data.format={fitting[0]} to train on all"
        )
    return fitting[0]


def missing(name: str, row: Mapping[str, Any], why: str) -> str:
    """Says that a column is missing, which there are, and which may be meant."""
    meant = [other for other in _SYNONYMS.get(name, ()) if other in row]
    near = difflib.get_close_matches(name, list(row), n=1) or meant
    hint = f"; did you mean {near[0]!r}? Name it in data.columns" if near else ""
    return f"field {name!r} is missing ({why}); the row has {', '.join(map(repr, row)) or 'no columns'}{hint}"


_SYNONYMS = {
    "prompt": ("question", "instruction", "input", "query", "goal", "ctx"),
    "completion": ("answer", "output", "response", "target"),
}


def _example(kind: Kind, row: Row) -> str:
    found = next((name for name in _SYNONYMS["prompt"] if name in row), "...")
    examples = {
        "sft": "{text: ...} or {prompt: ..., completion: ...}",
        "unpaired": f"{{prompt: {found}, completion: ..., label: ...}}",
    }
    return examples.get(kind, f"{{prompt: {found}}}")


def _has(*names: str) -> Callable[[Row], bool]:
    return lambda row: all(name in row for name in names)


def _same(row: Row) -> list[Row]:
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


def _alpaca(row: Row) -> list[Row]:
    messages = [_request(row)]
    if "output" in row:
        messages.append(_assistant(_string(row, "output")))
    return [_without(row, "instruction", "input", "output") | {"messages": messages}]


def _self_instruct(row: Row) -> list[Row]:
    rest = _without(row, "instances", "instruction")
    instances, instruction = _need(row, "instances"), _string(row, "instruction")
    if not instances or not isinstance(instances, list) or not all(isinstance(item, dict) for item in instances):
        raise RowError("FIELD_TYPE", f"field 'instances' is {shown(instances)}; expected a list of objects")
    return [rest | _alpaca({"instruction": instruction} | instance)[0] for instance in instances]


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


def _sharegpt(row: Row) -> list[Row]:
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


def _hh(row: Row) -> list[Row]:
    return [_split_prompt(row, _hh_messages(row, "chosen"), _hh_messages(row, "rejected"))]


def _is_hh(row: Row) -> bool:
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


def _preference(row: Row) -> list[Row]:
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


def _labelled_pairs(row: Row) -> list[Row] | Unused:
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


def _ranked(row: Row) -> list[Row] | Unused:
    ranks = row["ranks"]
    return "tie" if isinstance(ranks, list) and ranks and all(rank == ranks[0] for rank in ranks) else [row]


def _has_ranked_responses(row: Row) -> bool:
    responses = row.get("responses")
    return isinstance(responses, list) and all(isinstance(item, dict) and "rank" in item for item in responses)


def _kwise_responses(row: Row) -> list[Row] | Unused:
    responses = _need(row, "responses")
    if not _has_ranked_responses(row):
        raise RowError(
            "FIELD_TYPE", f"field 'responses' is {shown(responses)}; expected [{{text: ..., rank: ...}}, ...]"
        )
    completions = [[_assistant(_string(item, "text"))] for item in responses]
    ranks = [item["rank"] for item in responses]
    rest = _without(row, "responses", "instruction", "input")
    return _ranked(rest | {"prompt": _request_of(row), "completions": completions, "ranks": ranks})


def _first_turn(row: Row) -> list[Row]:
    turns = _need(row, "turns")
    if not isinstance(turns, list) or not turns or not isinstance(turns[0], str):
        raise RowError("FIELD_TYPE", f"field 'turns' is {shown(turns)}; expected a list of strings")
    return [row | {"prompt": [_user(turns[0])]}]


def _is_alpaca(row: Row) -> bool:
    return "instruction" in row and not {"instances", "responses", "prompt"} & set(row)


def _is_preference(row: Row) -> bool:
    return "chosen" in row and "rejected" in row and "conversations" not in row and not _is_hh(row)


_PLAIN = ("text", "prompt", "completion")

SHAPES: dict[Format, Shape] = {
    "text": Shape(("sft",), "text", _has("text"), _same),
    "messages": Shape(("sft", "unpaired", "prompt"), "messages", _has("messages"), _same, hides=_PLAIN),
    "prompt_completion": Shape(
        ("sft", "unpaired"), "prompt, completion", _has("prompt", "completion"), _same, hides=("text", "messages")
    ),
    "preference": Shape(("preference",), "chosen, rejected and perhaps prompt", _is_preference, _preference),
    "ranked": Shape(("ranked",), "prompt, completions, ranks", _has("completions", "ranks"), _ranked),
    "prompt": Shape(("prompt",), "prompt", _has("prompt"), _same),
    "alpaca": Shape(("sft", "unpaired", "prompt"), "instruction, input, output", _is_alpaca, _alpaca, hides=_PLAIN),
    "sharegpt": Shape(
        ("sft", "preference", "unpaired", "prompt"),
        "conversations of from, value",
        _has("conversations"),
        _sharegpt,
        hides=_PLAIN,
    ),
    "hh": Shape(("preference", "prompt"), "chosen, rejected as '\\n\\nHuman: ' transcripts", _is_hh, _hh),
    "kwise_responses": Shape(("ranked",), "prompt, responses of text, rank", _has_ranked_responses, _kwise_responses),
    "labelled_pairs": Shape(
        ("preference",), "prompt, response1, response2, label", _has("response1", "response2", "label"), _labelled_pairs
    ),
    "self_instruct": Shape(
        ("sft", "prompt"),
        "instruction, instances of input, output",
        _has("instruction", "instances"),
        _self_instruct,
        hides=_PLAIN,
    ),
    "turns": Shape(("prompt",), "turns", _has("turns"), _first_turn),
}
"""Every layout by the name that `data.format` gives it."""
