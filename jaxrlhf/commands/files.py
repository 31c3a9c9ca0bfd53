"""The files that commands write: new ones only, and whole ones only."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)


def check_new(path: str | None, what: str) -> None:
    """Refuses to write over a file, which may hold what people wrote into it; None is no file.

    Raises:
        ValueError: if it exists.
    """
    if path is not None and Path(path).exists():
        raise ValueError(f"{path} exists; write {what} to a new file, or remove it first")


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Writes rows as JSON lines beside `path`, and moves the file there once it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    os.replace(partial, path)
    log.info("wrote %s", path)


def write_result(path: Path, result: Any) -> None:
    """Writes a result as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
