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

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

from jaxrlhf.data.config import Format
from jaxrlhf.data.layouts import (
    Unused,
    alpaca,
    first_turn,
    has,
    has_ranked_responses,
    hh,
    is_alpaca,
    is_hh,
    is_preference,
    kwise_responses,
    labelled_pairs,
    preference,
    ranked,
    same,
    self_instruct,
    sharegpt,
)
from jaxrlhf.data.rowlog import SYNONYMS, Row, RowError, missing

Kind = Literal["sft", "preference", "unpaired", "ranked", "prompt"]
"""What a method learns from: texts, pairs, single answers with a label, K ranked answers, or prompts to answer."""


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
        ranked = f"; or, for a reward model, {_layouts('ranked')}" if kind == "preference" else ""
        raise ValueError(
            f"columns {', '.join(row)} fit no layout for {kind!r}; expected one of {_layouts(kind)}{ranked}. "
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


def _layouts(kind: Kind) -> str:
    return "; ".join(f"{name} ({shape.columns})" for name, shape in SHAPES.items() if kind in shape.kinds)


def _example(kind: Kind, row: Row) -> str:
    found = next((name for name in SYNONYMS["prompt"] if name in row), "...")
    examples = {
        "sft": "{text: ...} or {prompt: ..., completion: ...}",
        "unpaired": f"{{prompt: {found}, completion: ..., label: ...}}",
    }
    return examples.get(kind, f"{{prompt: {found}}}")


_PLAIN = ("text", "prompt", "completion")

SHAPES: dict[Format, Shape] = {
    "text": Shape(("sft",), "text", has("text"), same),
    "messages": Shape(("sft", "unpaired", "prompt"), "messages", has("messages"), same, hides=_PLAIN),
    "prompt_completion": Shape(
        ("sft", "unpaired"),
        "prompt, completion",
        has("prompt", "completion"),
        same,
        hides=("text", "messages"),
    ),
    "preference": Shape(("preference",), "chosen, rejected and perhaps prompt", is_preference, preference),
    "ranked": Shape(("ranked",), "prompt, completions, ranks", has("completions", "ranks"), ranked),
    "prompt": Shape(("prompt",), "prompt", has("prompt"), same),
    "alpaca": Shape(("sft", "unpaired", "prompt"), "instruction, input, output", is_alpaca, alpaca, hides=_PLAIN),
    "sharegpt": Shape(
        ("sft", "preference", "unpaired", "prompt"),
        "conversations of from, value",
        has("conversations"),
        sharegpt,
        hides=_PLAIN,
    ),
    "hh": Shape(("preference", "prompt"), "chosen, rejected as '\\n\\nHuman: ' transcripts", is_hh, hh),
    "kwise_responses": Shape(("ranked",), "prompt, responses of text, rank", has_ranked_responses, kwise_responses),
    "labelled_pairs": Shape(
        ("preference",),
        "prompt, response1, response2, label",
        has("response1", "response2", "label"),
        labelled_pairs,
    ),
    "self_instruct": Shape(
        ("sft", "prompt"),
        "instruction, instances of input, output",
        has("instruction", "instances"),
        self_instruct,
        hides=_PLAIN,
    ),
    "turns": Shape(("prompt",), "turns", has("turns"), first_turn),
}
"""Every layout by the name that `data.format` gives it."""
