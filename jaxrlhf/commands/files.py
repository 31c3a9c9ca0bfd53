"""The files that commands write: new ones only, and whole ones only."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

log = logging.getLogger(__name__)


def check_new(path: str | None, what: str) -> None:
    """Refuses to write over a file, which may hold what people wrote into it; None is no file.

    Raises:
        ValueError: if it exists.
    """
    if path is not None and Path(path).exists():
        raise ValueError(f"{path} exists; write {what} to a new file, or remove it first")


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Writes rows as JSON lines; where `rows` fails there is no file."""
    with _whole(path, "w", "utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    log.info("wrote %s", path)


def write_result(path: Path, result: Any) -> None:
    """Writes a result as JSON."""
    with _whole(path, "w", "utf-8") as file:
        file.write(json.dumps(result, indent=1) + "\n")


def write_bytes(path: Path, content: bytes) -> None:
    """Writes what is encoded already, in place of an earlier file."""
    with _whole(path, "wb") as file:
        file.write(content)


@contextlib.contextmanager
def _whole(path: Path, mode: str, encoding: str | None = None) -> Iterator[IO[Any]]:
    """Opens a file beside `path`, and moves it there once it is whole; what was interrupted is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open(mode, encoding=encoding) as file:
            yield file
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
