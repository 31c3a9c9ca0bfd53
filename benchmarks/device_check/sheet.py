"""The rows of a section, as JSON lines: each is on the disk as soon as it is known."""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import json
import platform
from pathlib import Path
from typing import Any

from benchmarks.device_check.clock import Clock
from benchmarks.device_check.sections import SECTIONS

Row = dict[str, Any]

PACKAGES = ("jax", "jaxlib", "flax", "optax", "torch", "transformers", "triton", "liger-kernel")


@functools.cache
def versions() -> dict[str, str]:
    """Versions of Python and of the packages that are installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # a peer that is not there has no version; its rows say that it was left out
    return found


@dataclasses.dataclass(frozen=True)
class Sheet:
    """Where a section writes its rows.

    Attributes:
        path: `SECTION.jsonl`.
        section: what every row says of itself.
        device: the device's name.
        clock: the section's.
    """

    path: Path
    section: str
    device: str
    clock: Clock

    def add(self, **row: Any) -> None:
        """Writes a row, and with it section, device and versions; what is None is left out."""
        known = {name: value for name, value in row.items() if value is not None}
        about = {"section": self.section, "device": self.device, "versions": versions()}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(about | known) + "\n")


def read_rows(path: Path) -> list[Row]:
    """The rows of a file.

    Raises:
        ValueError: for a file that cannot be read or is no text, and a line that is no row of a section, saying which.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}; expected a file SECTION.jsonl that a check wrote") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not text; expected a file SECTION.jsonl that a check wrote") from error
    return [_row_of(f"{path}:{number}", line) for number, line in enumerate(lines, start=1)]


def _row_of(place: str, line: str) -> Row:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{place}: not JSON ({error}); expected a row that a check wrote") from error
    if not isinstance(row, dict) or "section" not in row:
        raise ValueError(f"{place}: has no field 'section'; expected a row that a check wrote")
    if row["section"] not in SECTIONS:
        raise ValueError(f"{place}: section {row['section']!r}; expected one of {', '.join(SECTIONS)}")
    return row
