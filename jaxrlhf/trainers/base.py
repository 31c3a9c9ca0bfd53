"""The model that a run starts from, as its checkpoints record it for those who need it again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from jaxrlhf.models.folder import find_folder
from jaxrlhf.models.identity import folder_digest
from jaxrlhf.trainers.start import public_name, resolve


def base_record(name: str) -> dict[str, str] | None:
    """What is recorded of a model: `name`, by which it is found from any folder, and `files`, their digest.

    Args:
        name: as the config has it; see `trainers.start.resolve`.

    Returns:
        The record; None for a model in memory, which has no name.

    Raises:
        ValueError: if there is no such model.
    """
    public = public_name(name)
    return None if public is None else {"name": public, "files": folder_digest(find_folder(resolve(name)))}


def find_base(run: Path, name: str) -> Path:
    """The folder of the model that a run was started from.

    Args:
        run: folder of the run, for messages.
        name: of the model, as its checkpoint or its config has it; empty for one in memory.

    Raises:
        ValueError: if it is not there, or was never anywhere but in memory.
    """
    if not name:
        raise ValueError(f"{run} was started from a model in memory; give base=FOLDER, one that it was written to")
    try:
        return find_folder(resolve(name))
    except ValueError as error:
        raise ValueError(
            f"{run} was started from {name}, which is not there; give base=FOLDER, where it is now"
        ) from error


def check_base(run: Path, folder: Path, recorded: Mapping[str, str] | None) -> None:
    """Refuses to put what a run trained over another model than it trained over.

    Args:
        run: folder of the run, for messages.
        folder: of the model.
        recorded: see `base_record`; None, which a checkpoint of an earlier version has, is not checked.

    Raises:
        ValueError: if the files are others.
    """
    if recorded is not None and folder_digest(folder) != recorded["files"]:
        raise ValueError(
            f"{folder} is not the model that {run} was trained over: its config or weights are others now; restore "
            "them, or give base=FOLDER, where those of then are"
        )
