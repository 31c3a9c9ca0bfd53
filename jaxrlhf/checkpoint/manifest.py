"""The list of files of a checkpoint with their sizes and checksums, which Orbax does not keep.

A flipped bit in a stored array restores without a complaint; with a manifest it is an error that names the file.
"""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path
from typing import Any

NAME = "manifest.json"

_VERSION = 1
_CHUNK = 1 << 20


def write_manifest(folder: Path, facts: dict[str, Any]) -> None:
    """Writes the manifest of all files in a folder, durably.

    Args:
        folder: nothing in it changes afterwards.
        facts: JSON-ready values that `read_manifest` returns beside the files.
    """
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != NAME)
    files = {path.relative_to(folder).as_posix(): [path.stat().st_size, _crc32(path)] for path in paths}
    body = {"version": _VERSION, **facts, "files": files}
    with (folder / NAME).open("w", encoding="utf-8") as file:
        json.dump({"crc32": _body_crc32(body), "manifest": body}, file, indent=1, allow_nan=False)
        file.flush()
        os.fsync(file.fileno())


def read_manifest(folder: Path) -> dict[str, Any]:
    """Reads a manifest.

    Args:
        folder: the folder it lies in.

    Returns:
        The facts, and under `files` path -> [size in bytes, crc32].

    Raises:
        ValueError: there is none, it was changed, or it is of another version; names the file.
    """
    path = folder / NAME
    try:
        content = json.loads(path.read_bytes())
        body = content["manifest"]
        intact = content["crc32"] == _body_crc32(body)
    except FileNotFoundError as error:
        raise ValueError(f"{path} is missing") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no manifest: {error}") from error
    if not intact:
        raise ValueError(f"{path} was changed after it was written")
    if body["version"] != _VERSION:
        raise ValueError(f"{path} has version {body['version']}, this jaxrlhf reads version {_VERSION}")
    return body


def verify_files(folder: Path) -> list[str]:
    """Compares the files of a folder with its manifest.

    Args:
        folder: the folder that the manifest lies in; its files are read once.

    Returns:
        One line for each file that is missing or differs; empty if all are as written.
    """
    try:
        files = read_manifest(folder)["files"]
    except ValueError as error:
        return [str(error)]
    problems = []
    for name, (size, crc32) in files.items():
        path = folder / name
        if not path.is_file():
            problems.append(f"{path} is missing")
        elif path.stat().st_size != size:
            problems.append(f"{path} has {path.stat().st_size} bytes, expected {size}")
        elif _crc32(path) != crc32:
            problems.append(f"{path} was changed after it was written: its checksum differs")
    return problems


def _crc32(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            value = zlib.crc32(chunk, value)
    return value


def _body_crc32(body: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(body, sort_keys=True).encode())
