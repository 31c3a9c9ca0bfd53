"""A folder that is absent or complete, never partial."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxrlhf.sharding.distributed import is_main


def make_way(folder: Path, overwrite: bool) -> None:
    """Sees to it that a folder is not there. Process 0 looks for all: others may come when it has made it already.

    Args:
        folder: to be written.
        overwrite: whether one that exists is removed.

    Raises:
        ValueError: if it exists and may not be removed.
    """
    taken = is_main() and folder.exists()
    if taken and overwrite:
        shutil.rmtree(folder)
        taken = False
    if jax.process_count() > 1:
        taken = bool(multihost_utils.broadcast_one_to_all(np.int32(taken)))
    if taken:
        raise ValueError(f"{folder} exists; export to a new folder, or remove it first")


@contextlib.contextmanager
def appear_whole(folder: Path) -> Iterator[Path]:
    """A folder to write to, which gets its name once everything is in it and on the disk."""
    partial = folder.with_name(f".{folder.name}.partial")
    if is_main():
        shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
        partial.mkdir(parents=True)
    try:
        yield partial
        if is_main():
            for file in partial.iterdir():
                _sync(file)
            partial.rename(folder)
    except BaseException:
        if is_main():
            shutil.rmtree(partial)
        raise
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"export {folder}")


def write_json(file: Path, content: dict[str, Any]) -> None:
    """Writes a JSON object for people to read too."""
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _sync(file: Path) -> None:
    with file.open("rb") as handle:
        os.fsync(handle.fileno())
