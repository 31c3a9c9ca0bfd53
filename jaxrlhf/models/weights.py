"""Published weights to parameters: safetensors, read slice by slice into the memory of the device that keeps them."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import re
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from safetensors import SafetensorError, safe_open

from jaxrlhf.models.config import ModelConfig
from jaxrlhf.models.folder import FAMILIES, read_json
from jaxrlhf.models.tensors import Entry, flat_shapes, flatten, tensor_entries
from jaxrlhf.sharding.rules import KeptWhole
from jaxrlhf.types import Params

Index = tuple[slice, ...]

_DTYPES = ("F32", "BF16", "F16")
_SHOWN = 10  # tensors of each kind in an error
_SCORE = "score/kernel"


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoadReport:
    """What became of each tensor of a folder.

    Attributes:
        folder: that was read.
        dtypes: published dtype -> number of tensors read; all became float32.
        ignored: published tensors that were not read.
        initialised: parameters that the folder does not have, and how they were filled.
        kept_whole: dimensions that a sharding rule would divide and that do not divide.
    """

    folder: Path
    dtypes: Mapping[str, int]
    ignored: tuple[str, ...] = ()
    initialised: tuple[str, ...] = ()
    kept_whole: tuple[KeptWhole, ...] = ()

    def __str__(self) -> str:
        """A line for each thing that is worth one."""
        read = ", ".join(f"{count} {dtype}" for dtype, count in self.dtypes.items())
        lines = [f"{self.folder}: read {read} tensors as float32"]
        lines += [f"ignored {name}" for name in self.ignored]
        lines += [f"initialised {what}" for what in self.initialised]
        return "\n  ".join(lines + [str(kept) for kept in self.kept_whole])


def load_params(
    folder: Path,
    config: ModelConfig,
    *,
    shardings: Params | None = None,
    new_score: bool = False,
    key: jax.Array | None = None,
) -> tuple[Params, LoadReport]:
    """Reads `model.safetensors`, or the shards that `model.safetensors.index.json` lists, as float32.

    Each process reads only the slices that its devices keep.

    Args:
        folder: of the model.
        config: the model, as `read_config` gives it or with `scalar_head` set.
        shardings: tree of shardings like the parameters; None puts everything on the default device.
        new_score: whether the folder is a language model and the score head is to be made.
        key: for the new score head: normal with deviation 1 / sqrt(D + 1) (Stiennon et al. 2020); None makes it zero.

    Returns:
        Parameters, and what became of each tensor.

    Raises:
        ValueError: if there are no safetensors, or they cannot be read, or do not fit the config; all tensors that are
            missing, unexpected, of another shape or dtype at once.
    """
    entries = [entry for entry in tensor_entries(config) if not (new_score and entry.path == _SCORE)]
    shapes = flat_shapes(config)
    spots = {} if shardings is None else flatten(shardings)
    with contextlib.ExitStack() as stack:
        files = _open_tensors(folder, stack)
        ignored = [name for name in files if _is_ignored(name, config)]
        slices = {name: file.get_slice(name) for name, file in files.items() if name not in ignored}
        _check(folder, entries, slices)
        flat = {
            path: _place(_reader(list(group), slices), shapes[path], spots.get(path))
            for path, group in itertools.groupby(entries, key=lambda entry: entry.path)
        }
    initialised = []
    if new_score:
        score, how = _new_score(config.hidden_size, key)
        flat[_SCORE] = _place(lambda index: score[index], score.shape, spots.get(_SCORE))
        initialised.append(f"{_SCORE} with {how}")
    report = LoadReport(
        folder=folder,
        dtypes=Counter(str(part.get_dtype()) for part in slices.values()),
        ignored=tuple(ignored),
        initialised=tuple(initialised),
    )
    return traverse_util.unflatten_dict(flat, sep="/"), report


def _open_tensors(folder: Path, stack: contextlib.ExitStack) -> dict[str, Any]:
    """Published name -> open file that holds it."""
    tensors: dict[str, Any] = {}
    for file in _weight_files(folder):
        try:
            handle = stack.enter_context(safe_open(file, framework="numpy"))
        except (SafetensorError, FileNotFoundError) as error:
            raise ValueError(
                f"{file} is not a readable safetensors file ({error}); "
                "was it downloaded whole, and not as a Git LFS pointer?"
            ) from error
        tensors |= dict.fromkeys(handle.keys(), handle)
    return tensors


def _weight_files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    if index.is_file():
        return [folder / name for name in _shard_names(index)]
    if any(folder.glob("pytorch_model*.bin")):
        raise ValueError(
            f"{folder} has pytorch_model*.bin only: pickles can run code, so they are not read; load the model with "
            "transformers where you trust it, and save it with model.save_pretrained(FOLDER)"
        )
    raise ValueError(f"{folder} has neither model.safetensors nor {index.name}")


def _shard_names(index: Path) -> list[str]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{index}: field 'weight_map' is missing; expected an object from tensor to file name")
    names = sorted({str(name) for name in weight_map.values()})
    outside = [name for name in names if Path(name).name != name or "\\" in name]
    if outside:
        raise ValueError(f"{index}: {outside} are not plain file names; shards must lie beside the index")
    return names


def _is_ignored(name: str, config: ModelConfig) -> bool:
    # A tied model may carry a copy of its embedding; a scalar model made from a language model has no use for it.
    if name == "lm_head.weight" and (config.tie_embeddings or config.scalar_head):
        return True
    return any(re.search(pattern, name) for pattern in FAMILIES[config.model_type].ignored)


def _check(folder: Path, entries: list[Entry], slices: Mapping[str, Any]) -> None:
    expected = {entry.name: entry.shape for entry in entries}
    common = [name for name in expected if name in slices]
    problems = {
        "missing": [name for name in expected if name not in slices],
        "unexpected": [name for name in slices if name not in expected],
        "of another shape": [
            f"{name} has {slices[name].get_shape()}, expected {list(expected[name])}"
            for name in common
            if tuple(slices[name].get_shape()) != expected[name]
        ],
        f"of a dtype other than {', '.join(_DTYPES)}": [
            f"{name} has {slices[name].get_dtype()}" for name in common if slices[name].get_dtype() not in _DTYPES
        ],
    }
    lines = [f"{len(found)} {kind}: {_some(found)}" for kind, found in problems.items() if found]
    if lines:
        raise ValueError(f"{folder}: the tensors do not fit config.json\n  " + "\n  ".join(lines))


def _some(found: list[str]) -> str:
    rest = f", and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return ", ".join(found[:_SHOWN]) + rest


def _reader(entries: list[Entry], slices: Mapping[str, Any]) -> Callable[[Index], np.ndarray]:
    """Index of a parameter -> that part of it, float32."""

    def part(entry: Entry, index: Index) -> np.ndarray:
        published = slices[entry.name][index[::-1] if entry.transpose else index]
        return (published.T if entry.transpose else published).astype(np.float32)

    def read(index: Index) -> np.ndarray:
        if entries[0].layer is None:
            return part(entries[0], index)
        return np.stack([part(entry, index[1:]) for entry in entries[index[0]]])

    return read


def _place(
    read: Callable[[Index], np.ndarray], shape: tuple[int, ...], sharding: jax.sharding.Sharding | None
) -> jax.Array:
    if sharding is None:
        return jnp.asarray(read((slice(None),) * len(shape)))
    parts: dict[Any, np.ndarray] = {}  # devices that hold the same part share one reading of it

    def once(index: Index | None) -> np.ndarray:
        assert index is not None, "jax asks for parts of arrays that this process holds"
        place = tuple(axis.indices(size) for axis, size in zip(index, shape, strict=True))
        if place not in parts:
            parts[place] = read(index)
        return parts[place]

    return jax.make_array_from_callback(shape, sharding, once)


def _new_score(width: int, key: jax.Array | None) -> tuple[np.ndarray, str]:
    if key is None:
        return np.zeros((1, width), np.float32), "zeros"
    deviation = (width + 1) ** -0.5
    return np.asarray(deviation * jax.random.normal(key, (1, width))), f"normal(0, {deviation:.4g})"
