"""A published model as a folder: where it is, and what its `config.json` says."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from jaxrlhf.models.config import ModelConfig
from jaxrlhf.models.families.family import Family
from jaxrlhf.models.families.llama import LLAMA

FAMILIES: dict[str, Family] = {"llama": LLAMA}
"""`model_type` of the published config -> its tables."""

_WANTED = ("*.json", "*.safetensors", "tokenizer.model", "*.jinja")  # no pickles, no code


def find_folder(path: str | Path, revision: str | None = None) -> Path:
    """The folder of a model, downloaded first if `path` is the name of one on the Hugging Face hub.

    Args:
        path: a folder, or `owner/name`.
        revision: commit, tag or branch on the hub; None means its main branch.

    Returns:
        A local folder.

    Raises:
        ValueError: if it is neither, or cannot be fetched; it then names the command that fetches it elsewhere.
    """
    folder = Path(path)
    if folder.is_dir():
        if revision is not None:
            raise ValueError(f"revision={revision!r} has no effect on {folder}, which is a local folder; leave it out")
        return folder
    if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", str(path)):
        raise ValueError(f"{path}: there is no such folder, and it is not a hub name of the form 'owner/name'")
    from huggingface_hub import snapshot_download  # slow to import, and needed only here

    try:
        return Path(snapshot_download(str(path), revision=revision, allow_patterns=list(_WANTED)))
    except OSError as error:  # no network, no such repository, no permission: all errors of the hub are OSErrors
        version = "" if revision is None else f" --revision {revision}"
        raise ValueError(
            f"{path}: there is no such folder, and it could not be fetched from the hub ({error}); where there is a "
            f"network, run: hf download {path}{version} --local-dir FOLDER, and give FOLDER here"
        ) from error


def read_config(folder: Path) -> ModelConfig:
    """Reads `config.json`; `scalar_head` is set for published reward models.

    Args:
        folder: of the model.

    Returns:
        `ModelConfig`.

    Raises:
        ValueError: if the file is missing or broken, or names what is not supported; all such options at once.
    """
    file = folder / "config.json"
    raw = read_json(file)
    model_type = raw.get("model_type")
    if model_type not in FAMILIES:
        raise ValueError(f"{file}: model_type={model_type!r} is not supported; supported are {sorted(FAMILIES)}")
    return FAMILIES[model_type].read_config(raw, str(file))


def read_json(file: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Args:
        file: to read.

    Returns:
        Its contents.

    Raises:
        ValueError: if the file is missing, or not an object in JSON.
    """
    if not file.is_file():
        raise ValueError(f"{file} is missing; a model folder needs it")
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:  # also what bytes that are not UTF-8 raise
        raise ValueError(f"{file} is not JSON: {error}") from error
    if not isinstance(raw, dict):
        raise ValueError(f"{file} holds a {type(raw).__name__}; expected an object")
    return raw
