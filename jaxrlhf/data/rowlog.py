"""What became of the rows that were read: counts, and what is wrong with the bad ones."""

from __future__ import annotations

import base64
import dataclasses
import difflib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxrlhf.data.config import BadRows

logger = logging.getLogger(__name__)

Row = dict[str, Any]
"""A raw row: column name -> value."""

MAX_SHOWN = 20
MAX_SKIPPED = 0.05


class RowError(ValueError):
    """Something wrong with one row; whoever knows where the row stands catches it.

    Attributes:
        code: short name of the problem, such as FIELD_MISSING, for the file of rejected rows.
    """

    def __init__(self, code: str, message: str):
        """Keeps the code beside the message."""
        super().__init__(message)
        self.code = code


def shown(value: object) -> str:
    """Returns `value` as it may stand in a message: escaped, and at most 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def missing(name: str, row: Mapping[str, Any], why: str) -> str:
    """Says that a column is missing, which there are, and which may be meant."""
    meant = [other for other in SYNONYMS.get(name, ()) if other in row]
    near = difflib.get_close_matches(name, list(row), n=1) or meant
    hint = f"; did you mean {near[0]!r}? Name it in data.columns" if near else ""
    return f"field {name!r} is missing ({why}); the row has {', '.join(map(repr, row)) or 'no columns'}{hint}"


SYNONYMS = {
    "prompt": ("question", "instruction", "input", "query", "goal", "ctx"),
    "completion": ("answer", "output", "response", "target"),
}

"""Columns that are often meant by a standard one."""


@dataclasses.dataclass(kw_only=True)
class RowLog:
    """Counts rows and collects problems, so that many bad rows make one error.

    Attributes:
        bad_rows: "error" makes `finish` raise for any bad row, "skip" only above 5 % of the rows.
        rejects: where "skip" writes the bad rows, unchanged, each with its place and problem; None: nowhere.
        read: number of rows read, the bad ones among them.
        blank: number of blank lines.
        rejected: number of bad rows.
        problems: the first 20 problems, each beginning with its place.
        notes: remarks on what was read, each once.
    """

    bad_rows: BadRows = "error"
    rejects: Path | None = None
    read: int = 0
    blank: int = 0
    rejected: int = 0
    problems: list[str] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)
    _records: list[str] = dataclasses.field(default_factory=list)

    def note(self, text: str) -> None:
        """Keeps a remark for the report, once."""
        if text not in self.notes:
            self.notes.append(text)

    def reject(self, where: str, error: RowError, row: bytes | Mapping[str, Any]) -> None:
        """Counts a bad row, given as its bytes if it could not be parsed."""
        self.rejected += 1
        if len(self.problems) < MAX_SHOWN:
            self.problems.append(f"{where}: {error}")
        if self.rejects is not None and self.bad_rows == "skip":
            record = {"where": where, "code": error.code, "problem": str(error)} | _verbatim(row)
            self._records.append(json.dumps(record, default=str) + "\n")

    def finish(self) -> None:
        """Ends the reading: writes the rejects, and raises ValueError if there are too many of them."""
        if not self.rejected:
            return
        if self._records and self.rejects is not None:
            self.rejects.parent.mkdir(parents=True, exist_ok=True)
            self.rejects.write_text("".join(self._records), encoding="utf-8")
        if self.bad_rows == "error" or self.rejected > MAX_SKIPPED * self.read:
            raise ValueError(self._summary())
        self.note(f"left out {self.rejected} bad rows of {self.read}; the first: {self.problems[0]}")

    def _summary(self) -> str:
        lines = list(self.problems)
        if self.rejected > len(lines):
            lines.append(f"... and {self.rejected - len(lines)} more")
        total = f"{self.rejected} bad rows of {self.read}"
        if self.bad_rows == "error":
            lines.append(f"{total}; mend them, or leave them out with data.bad_rows=skip")
        else:
            lines.append(f"{total} are more than the {MAX_SKIPPED:.0%} that data.bad_rows=skip may leave out")
        return "\n".join(lines)


def _verbatim(row: bytes | Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(row, bytes):
        return {"row": row}
    try:
        return {"row": row.decode("utf-8")}
    except UnicodeDecodeError:
        return {"row_base64": base64.b64encode(row).decode("ascii")}
