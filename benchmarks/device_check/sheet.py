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
        ValueError: for a line that is no JSON object with a section, saying which.
    """
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}:{number}: not JSON ({error}); expected a row that a check wrote") from error
        if not isinstance(row, dict) or "section" not in row:
            raise ValueError(f"{path}:{number}: has no field 'section'; expected a row that a check wrote")
        rows.append(row)
    return rows
