"""Published weights to parameters: each tensor is accounted for, and read to the devices that keep it."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import numpy as np
from flax import traverse_util

from jaxrlhf.models.config import ModelConfig
from jaxrlhf.models.folder import FAMILIES
from jaxrlhf.models.kept import read_kept
from jaxrlhf.models.lora_config import BaseDType
from jaxrlhf.models.published import Published, published_tensors
from jaxrlhf.models.tensors import Entry, Index, flat_shapes, flatten, tensor_entries
from jaxrlhf.sharding.rules import KeptWhole
from jaxrlhf.types import Params

Edit = Callable[[str, int | None, Index, np.ndarray], np.ndarray]
"""(path of a parameter, number of the layer or None, where the values lie in the parameter, which is without the axis
of layers here, float32 values) -> float32 values to keep in their place. Merging an adapter is
`values + scale * a[layer][index[0]] @ b[layer][:, index[1]]` at the paths that have one."""

_DTYPES = ("F32", "BF16", "F16")
_SHOWN = 10  # tensors of each kind in an error
_HEAD, _SCORE = "lm_head/kernel", "score/kernel"


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoadReport:
    """What became of each tensor of a folder.

    Attributes:
        folder: that was read.
        dtypes: published dtype -> number of tensors read.
        kept: dtype that the parameters are kept in.
        ignored: published tensors that were not read.
        initialised: parameters that the folder does not have, and how they were filled.
        adapters: folders of adapters that were added, the innermost first.
        kept_whole: dimensions that a sharding rule would divide and that do not divide.
    """

    folder: Path
    dtypes: Mapping[str, int]
    kept: BaseDType = "float32"
    ignored: tuple[str, ...] = ()
    initialised: tuple[str, ...] = ()
    adapters: tuple[Path, ...] = ()
    kept_whole: tuple[KeptWhole, ...] = ()

    def __str__(self) -> str:
        """A line for each thing that is worth one."""
        read = ", ".join(f"{count} {dtype}" for dtype, count in self.dtypes.items())
        lines = [f"{self.folder}: read {read} tensors as {self.kept}"]
        lines += [f"ignored {name}" for name in self.ignored]
        lines += [f"initialised {what}" for what in self.initialised]
        lines += [f"added the adapter {folder}" for folder in self.adapters]
        return "\n  ".join(lines + [str(kept) for kept in self.kept_whole])


def load_params(
    folder: Path,
    config: ModelConfig,
    *,
    shardings: Params | None = None,
    dtype: BaseDType = "float32",
    edit: Edit | None = None,
    new_score: bool = False,
    key: jax.Array | None = None,
) -> tuple[Params, LoadReport]:
    """Reads safetensors into the memory of the devices.

    Each process reads only what its devices keep, and holds a few megabytes of it at a time (`models.streaming`).

    Args:
        folder: of the model.
        config: the model, as `read_config` gives it or with `scalar_head` set.
        shardings: tree of `NamedSharding` like `kept.kept_shapes`; None puts everything on the default device.
        dtype: to keep them in: "float32", "bfloat16", or "int8", see `models.quantized.keep_as`.
        edit: changes values between reading and rounding; None changes none.
        new_score: whether the folder is a language model and the score head is to be made.
        key: for the new score head: normal with deviation 1 / sqrt(D + 1) (Stiennon et al. 2020); None makes it zero.

    Returns:
        Parameters, and what became of each tensor.

    Raises:
        ValueError: if there are no safetensors, or they cannot be read, or do not fit the config; all tensors that are
            missing, unexpected, of another shape or dtype at once.
    """
    shapes, places = flat_shapes(config), {} if shardings is None else flatten(shardings)
    entries = tensor_entries(config)
    scores = [entry for entry in entries if new_score and _SCORE in entry.paths]
    published = [entry for entry in entries if entry not in scores]
    tensors = _with_prefix(published_tensors(folder), published)
    ignored = [name for name in tensors if _is_ignored(name, config)]
    used = {name: tensor for name, tensor in tensors.items() if name not in ignored}
    _check(folder, published, used)
    flat: dict[str, jax.Array] = {}
    for path, layers in _sources(published, used).items():
        flat |= read_kept(path, _reader(path, layers, edit), shapes[path], layers[0][0], dtype, places)
    initialised = []
    for entry in scores:
        score, how = _new_score(config.hidden_size, key)
        flat |= read_kept(_SCORE, score.__getitem__, score.shape, entry, dtype, places)
        initialised.append(f"{_SCORE} with {how}")
    report = LoadReport(
        folder=folder,
        dtypes=Counter(tensor.dtype for tensor in used.values()),
        kept=dtype,
        ignored=tuple(ignored),
        initialised=tuple(initialised),
    )
    return traverse_util.unflatten_dict(flat, sep="/"), report


def _sources(entries: list[Entry], tensors: Mapping[str, Published]) -> dict[str, list[tuple[Entry, Published]]]:
    """Path of a parameter -> the published tensors that it is in, those of its layers in their order."""
    sources: dict[str, list[tuple[Entry, Published]]] = {}
    for entry in entries:
        for path in entry.paths:
            sources.setdefault(path, []).append((entry, tensors[entry.name]))
    return sources


def _with_prefix(tensors: dict[str, Published], entries: list[Entry]) -> dict[str, Published]:
    """The tensors by the names that a model with a head has: a folder may have been written from its trunk alone."""
    expected = {entry.name for entry in entries}
    if expected & tensors.keys():
        return tensors
    prefix = entries[0].name.partition(".")[0]
    return {f"{prefix}.{name}" if f"{prefix}.{name}" in expected else name: part for name, part in tensors.items()}


def _is_ignored(name: str, config: ModelConfig) -> bool:
    # A tied model may carry a copy of its embedding; a scalar model made from a language model has no use for it.
    family = FAMILIES[config.model_type]
    if config.tie_embeddings or config.scalar_head:
        if any(row.path == _HEAD and row.name == name for row in family.tensors):
            return True
    return any(re.search(pattern, name) for pattern in family.ignored)


def _check(folder: Path, entries: list[Entry], tensors: Mapping[str, Published]) -> None:
    expected = {entry.name: entry.shape for entry in entries}
    common = [name for name in expected if name in tensors]
    problems = {
        "missing": [name for name in expected if name not in tensors],
        "unexpected": [name for name in tensors if name not in expected],
        "of another shape": [
            f"{name} has {list(tensors[name].shape)}, expected {list(expected[name])}"
            for name in common
            if tensors[name].shape != expected[name]
        ],
        f"of a dtype other than {', '.join(_DTYPES)}": [
            f"{name} has {tensors[name].dtype}" for name in common if tensors[name].dtype not in _DTYPES
        ],
    }
    lines = [f"{len(found)} {kind}: {_some(found)}" for kind, found in problems.items() if found]
    if lines:
        raise ValueError(f"{folder}: the tensors do not fit config.json\n  " + "\n  ".join(lines))


def _some(found: list[str]) -> str:
    rest = f", and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return ", ".join(found[:_SHOWN]) + rest


def _reader(path: str, layers: list[tuple[Entry, Published]], edit: Edit | None) -> Callable[[Index], np.ndarray]:
    """Index of a parameter -> that part of it, in the published dtype if that is one and nothing is to be changed."""
    wide = edit is not None or len({tensor.dtype for _, tensor in layers}) > 1

    def part(entry: Entry, tensor: Published, index: Index) -> np.ndarray:
        *inputs, columns = index
        places = [(*inputs, run) for run in entry.runs(path, columns)]
        read = tensor.read([place[::-1] for place in places] if entry.transpose else places)
        parts = [array.T for array in read] if entry.transpose else read
        values = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)
        if wide:
            values = values.astype(np.float32)
        return values if edit is None else edit(path, entry.layer, index, values)

    def read(index: Index) -> np.ndarray:
        if layers[0][0].layer is None:
            return part(*layers[0], index)
        values = [part(entry, tensor, index[1:]) for entry, tensor in layers[index[0]]]
        return values[0][None] if len(values) == 1 else np.stack(values)

    return read


def _new_score(width: int, key: jax.Array | None) -> tuple[np.ndarray, str]:
    if key is None:
        return np.zeros((1, width), np.float32), "zeros"
    deviation = (width + 1) ** -0.5
    return np.asarray(deviation * jax.random.normal(key, (1, width))), f"normal(0, {deviation:.4g})"
