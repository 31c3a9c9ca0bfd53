"""Which model a folder holds, told from another of the same shapes without reading all of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from jaxrlhf.models.folder import ADAPTER, lineage, read_json
from jaxrlhf.models.peft import WEIGHTS
from jaxrlhf.models.published import published_tensors

_SAMPLE = 4096
"""Bytes that are read from the middle of each tensor: the headers alone are the same for all that is fine-tuned."""


def folder_digest(folder: Path) -> str:
    """The same for the same files, wherever they lie; of adapters, for those that they stand over too.

    It reads the configs, and of the weights the headers and a few kilobytes from the middle of each tensor. So it does
    not notice other numbers elsewhere in a tensor, nor another tokenizer; it tells models apart that are mistaken for
    each other, and does not withstand somebody who wants to deceive it.

    Args:
        folder: of the model, or of an adapter in the layout of PEFT.

    Returns:
        SHA-256 in hexadecimal.

    Raises:
        ValueError: if the folder, or one that it stands over, is no model.
    """
    digest = hashlib.sha256()
    for part in _parts(folder):
        digest.update(part)
    return digest.hexdigest()


def _parts(folder: Path) -> Iterator[bytes]:
    *adapters, base = lineage(folder)
    for place in adapters:
        config = {key: value for key, value in read_json(place / ADAPTER).items() if key != "base_model_name_or_path"}
        yield json.dumps(config, sort_keys=True).encode()
        yield from _samples(place / WEIGHTS)
    yield json.dumps(read_json(base / "config.json"), sort_keys=True).encode()
    for file in sorted({tensor.file for tensor in published_tensors(base).values()}):
        yield from _samples(file)


def _samples(file: Path) -> Iterator[bytes]:
    """The header of a safetensors file, and the middle of each of its tensors."""
    with file.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        header = stream.read(size)
        yield header
        tensors = {name: entry for name, entry in json.loads(header).items() if name != "__metadata__"}
        for begin, end in sorted(entry["data_offsets"] for entry in tensors.values()):
            middle = (begin + end) // 2
            stream.seek(8 + size + middle)
            yield stream.read(min(_SAMPLE, end - middle))
