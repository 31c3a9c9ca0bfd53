"""What to read and how to turn it into tokens."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

from jaxrlhf.config_checks import Condition, check, positive

Format = Literal[
    "text",
    "messages",
    "prompt_completion",
    "preference",
    "ranked",
    "prompt",
    "alpaca",
    "sharegpt",
    "hh",
    "kwise_responses",
    "labelled_pairs",
    "self_instruct",
    "turns",
]
"""The layouts of rows that `data/shapes.py` understands."""

Truncation = Literal["keep_start", "keep_end", "drop"]
BadRows = Literal["error", "skip"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DatasetConfig:
    """One data set."""

    # A .jsonl, .json, .parquet or .txt file (also with .gz), a folder of them, a folder written by the `datasets`
    # library, or a hub id: `organisation/name`, or `organisation/name:configuration`.
    path: str
    # How often a row of this data set is seen, relative to a row of the others; positive. With equal weights every row
    # is seen once an epoch.
    weight: float = 1.0
    # The split of a hub data set or folder. A single file is its own split.
    split: str = "train"
    # Layout of the rows; None: `data.format`, or found from the columns of the first row.
    format: Format | None = None
    # Standard column -> name in this data set, for instance {prompt: question}; None: `data.columns`.
    columns: dict[str, str] | None = None

    def __post_init__(self) -> None:
        """Raises ValueError if a field is out of range."""
        check(
            self,
            (self.path != "", "path is empty; expected a file, a folder or a hub id"),
            (0 < self.weight < math.inf, f"weight={self.weight} of {self.path} must be positive and finite"),
            _different(self.columns),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """How rows become sequences of tokens."""

    # Longest sequence in tokens, prompt and answer and special tokens together; at least 2. Where answers are sampled,
    # the prompt alone, which must be shorter; rollout.max_new_tokens or sampling.max_new_tokens bounds the answer.
    max_length: int = 1024
    # Longest prompt in tokens, from 1 and below max_length, for methods that sample answers; longer prompts are
    # dropped and counted. None: all that are shorter than max_length.
    max_prompt_length: int | None = None
    # What happens to a sequence over max_length: keep its start, keep its end (and the first token, if that is the
    # beginning-of-sequence token), or drop the row. All three are counted.
    truncation: Truncation = "keep_start"
    # Put several short sequences in one row of the batch, kept apart by segment ids. SFT only.
    packing: bool = False
    # Put a prompt once in a row, and behind it all answers to it; False: a row for each answer; None: what leaves the
    # model less to compute, by the lengths in the data. DPO and reward models only. What is learned is the same within
    # rounding. None is False where the fastest attention would run and cannot have such rows (TPUs), or where attention
    # on an accelerator holds the scores of whole rows (float32).
    share_prompts: bool | None = None
    # End every answer with the end-of-sequence token, unless the chat template has ended the turn.
    add_eos: bool = True
    # Train on answers alone; False: on prompts too. SFT only.
    completion_only: bool = True
    # A built-in chat template ("chatml", "alpaca", "hh") or the path of a jinja file; None: the tokenizer's own.
    chat_template: str | None = None
    # Number of row widths, at least 1, hence of compiled programs. More widths, less padding.
    buckets: int = 1
    # A bad row stops the run ("error"), or is left out and counted up to 5 % of the rows ("skip").
    bad_rows: BadRows = "error"
    # Default of `format` for every data set.
    format: Format | None = None
    # Default of `columns` for every data set.
    columns: dict[str, str] | None = None

    def __post_init__(self) -> None:
        """Raises ValueError if a field is out of range."""
        check(
            self,
            *positive(self, "max_prompt_length", "buckets"),
            (self.max_length >= 2, f"max_length={self.max_length} must be at least 2"),
            (
                self.max_prompt_length is None or self.max_prompt_length < self.max_length,
                f"max_prompt_length={self.max_prompt_length} must be below max_length={self.max_length}",
            ),
            _different(self.columns),
        )


def _different(columns: dict[str, str] | None) -> Condition:
    theirs = list((columns or {}).values())
    different = len(set(theirs)) == len(theirs)
    return different, f"columns={columns} uses one column twice; each column can have one name"
