"""The tensors of a published folder: safetensors files, read a slice at a time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open

from jaxrlhf.models.folder import read_json
from jaxrlhf.models.tensors import Index

INDEX = "model.safetensors.index.json"


class Published(NamedTuple):
    """A tensor in a file.

    Attributes:
        file: that holds it.
        name: in the file.
        dtype: as safetensors call it, such as "BF16".
        shape: of the whole tensor.
    """

    file: Path
    name: str
    dtype: str
    shape: tuple[int, ...]

    def read(self, slices: Sequence[Index]) -> list[np.ndarray]:
        """Copies of some slices.

        The file is mapped for just as long: what was read of a file that stays open counts as memory of the process.
        """
        with safe_open(self.file, framework="numpy") as handle:
            tensor = handle.get_slice(self.name)
            return [tensor[index] for index in slices]


def published_tensors(folder: Path) -> dict[str, Published]:
    """Lists `model.safetensors`, or the shards that `model.safetensors.index.json` lists.

    Args:
        folder: of the model.

    Returns:
        Published name -> tensor.

    Raises:
        ValueError: if there are no safetensors, or they cannot be read.
    """
    tensors: dict[str, Published] = {}
    for file in _weight_files(folder):
        try:
            with safe_open(file, framework="numpy") as handle:
                parts = {name: handle.get_slice(name) for name in handle.keys()}
        except (SafetensorError, FileNotFoundError) as error:
            raise ValueError(
                f"{file} is not a readable safetensors file ({error}); "
                "was it downloaded whole, and not as a Git LFS pointer?"
            ) from error
        for name, part in parts.items():
            tensors[name] = Published(file, name, str(part.get_dtype()), tuple(part.get_shape()))
    return tensors


def _weight_files(folder: Path) -> list[Path]:
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    if (folder / INDEX).is_file():
        return [folder / name for name in _shard_names(folder / INDEX)]
    if any(folder.glob("pytorch_model*.bin")):
        raise ValueError(
            f"{folder} has pytorch_model*.bin only: pickles can run code, so they are not read; load the model with "
            "transformers where you trust it, and save it with model.save_pretrained(FOLDER)"
        )
    raise ValueError(f"{folder} has neither model.safetensors nor {INDEX}")


def _shard_names(index: Path) -> list[str]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{index}: field 'weight_map' is missing; expected an object from tensor to file name")
    names = sorted({str(name) for name in weight_map.values()})
    outside = [name for name in names if Path(name).name != name or "\\" in name]
    if outside:
        raise ValueError(f"{index}: {outside} are not plain file names; shards must lie beside the index")
    return names
