"""A published model as a folder: where it is, and what its `config.json` says."""

from __future__ import annotations

import dataclasses
import json
import logging
import re
from pathlib import Path
from typing import Any

from jaxrlhf.models.config import ModelConfig
from jaxrlhf.models.families.family import Family
from jaxrlhf.models.families.gemma2 import GEMMA2
from jaxrlhf.models.families.gemma3_text import GEMMA3_TEXT
from jaxrlhf.models.families.gpt2 import GPT2
from jaxrlhf.models.families.gpt_neox import GPT_NEOX
from jaxrlhf.models.families.llama import LLAMA
from jaxrlhf.models.families.mistral import MISTRAL
from jaxrlhf.models.families.olmo2 import OLMO2
from jaxrlhf.models.families.phi3 import PHI3
from jaxrlhf.models.families.qwen2 import QWEN2
from jaxrlhf.models.families.qwen3 import QWEN3

FAMILIES: dict[str, Family] = {
    "gemma2": GEMMA2,
    "gemma3_text": GEMMA3_TEXT,
    "gpt2": GPT2,
    "gpt_neox": GPT_NEOX,
    "llama": LLAMA,
    "mistral": MISTRAL,
    "olmo2": OLMO2,
    "phi3": PHI3,
    "qwen2": QWEN2,
    "qwen3": QWEN3,
}
"""`model_type` of the published config -> its tables."""

ADAPTER = "adapter_config.json"
"""The file by which the folder of an adapter is known."""

_WANTED = ("*.json", "*.safetensors", "tokenizer.model", "merges.txt", "*.jinja")  # no pickles, no code


def find_folder(path: str | Path, revision: str | None = None) -> Path:
    """The folder of a model, downloaded first if `path` is the name of one on the Hugging Face hub.

    Args:
        path: a folder, or `owner/name`.
        revision: commit, tag or branch on the hub; None means its main branch.

    Returns:
        A local folder.

    Raises:
        ValueError: if it is neither, or the folder of a run, or cannot be fetched; it then names the command that
            fetches it elsewhere.
    """
    folder = Path(path)
    if folder.is_dir():
        if (folder / "metrics.jsonl").exists() and not (folder / "config.json").exists():
            raise ValueError(f"{folder} is the folder of a run; give {folder}/export, its model")
        if revision is not None:
            raise ValueError(f"revision={revision!r} has no effect on {folder}, which is a local folder; leave it out")
        return folder
    if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", str(path)):
        raise ValueError(f"{path}: there is no such folder, and it is not a hub name of the form 'owner/name'")
    from huggingface_hub import snapshot_download  # slow to import, and needed only here

    logging.getLogger("huggingface_hub.utils._http").setLevel(logging.ERROR)  # a line for each of many attempts
    try:
        return Path(snapshot_download(str(path), revision=revision, allow_patterns=list(_WANTED)))
    except OSError as error:  # no network, no such repository, no permission: all errors of the hub are OSErrors
        version = "" if revision is None else f" --revision {revision}"
        raise ValueError(
            f"{path}: there is no such folder, and it could not be fetched from the hub ({_reason(error)}); where it "
            f"can be, run: hf download {path}{version} --local-dir FOLDER, and give FOLDER here"
        ) from error


def _reason(error: OSError) -> str:
    """A few words in place of the hub's paragraphs."""
    from huggingface_hub import errors

    reasons: dict[type[Exception], str] = {  # a gated repository is one that is not found, too
        errors.GatedRepoError: "its terms must be accepted on its page there, and `hf auth login` run here",
        errors.RepositoryNotFoundError: "there is none of this name, or it is private",
        errors.RevisionNotFoundError: "it has no such revision",
        errors.LocalEntryNotFoundError: "the hub cannot be reached",
    }
    known = (words for kind, words in reasons.items() if isinstance(error, kind))
    return next(known, str(error).strip().partition("\n")[0])


def lineage(folder: Path) -> list[Path]:
    """The folders that make up a model: adapters, the outermost first, and last the model that they stand over.

    Args:
        folder: of the model, or of an adapter in the layout of PEFT.

    Raises:
        ValueError: if an adapter names no base, or one that is not there, or itself.
    """
    folders = [folder]
    while (file := folders[-1] / ADAPTER).is_file():
        name = read_json(file).get("base_model_name_or_path")
        if not isinstance(name, str) or not name:
            raise ValueError(
                f"{file}: base_model_name_or_path is {name!r}, so what the adapter stands over is unknown; write the "
                "folder or hub id of that model there"
            )
        try:
            base = find_folder(name)
        except ValueError as error:
            raise ValueError(f"{file}, base_model_name_or_path: {error}; if it has moved, write there where") from error
        if base in folders:
            raise ValueError(f"{file}: base_model_name_or_path={name!r} stands over this adapter itself")
        folders.append(base)
    return folders


def is_reward_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter that makes a reward model of its base."""
    file = folder / ADAPTER
    return file.is_file() and read_json(file).get("task_type") == "SEQ_CLS"


def read_config(folder: Path) -> ModelConfig:
    """Reads `config.json`, of the base if the folder holds an adapter; `scalar_head` is set for reward models.

    Args:
        folder: of the model or adapter.

    Returns:
        `ModelConfig`.

    Raises:
        ValueError: if the file is missing or broken, or names what is not supported; all such options at once.
    """
    *adapters, base = lineage(folder)
    file = base / "config.json"
    raw = read_json(file)
    model_type = raw.get("model_type")
    if model_type not in FAMILIES:
        raise ValueError(f"{file}: model_type={model_type!r} is not supported; supported are {sorted(FAMILIES)}")
    config = FAMILIES[model_type].read_config(raw, str(file))
    if config.scalar_head:
        labels = raw.get("id2label")
        count = raw.get("num_labels", len(labels) if isinstance(labels, dict) else 1)  # if neither, `models.load` looks
        check_labels(count, str(file))
    return dataclasses.replace(config, scalar_head=config.scalar_head or any(map(is_reward_adapter, adapters)))


def check_labels(count: Any, where: str) -> None:
    """Refuses classifiers.

    Args:
        count: number of labels that was found.
        where: file or folder, for the message.

    Raises:
        ValueError: if there is not just one.
    """
    if count != 1:
        raise ValueError(
            f"{where}: the model has num_labels={count!r}; a reward model gives each answer one score, so it has one "
            "label; classifiers of several are not supported"
        )


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
