"""Published tensors and the parts of parameters that they are: the table of a family, written out for a config."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxrlhf.models.config import ModelConfig
from jaxrlhf.models.decoder import param_shapes
from jaxrlhf.models.families.family import Tensor
from jaxrlhf.models.folder import FAMILIES

Index = tuple[slice, ...]
"""A slice for each axis, with start and stop."""


class Entry(NamedTuple):
    """One published tensor: a parameter, that of one layer, or several of one layer side by side along their outputs.

    Without `.weight` the name is that of the published module, by which PEFT names the adapter beside it; several paths
    mean that one published adapter is beside several of our kernels.

    Attributes:
        name: published name.
        shape: published shape.
        paths: of the parameters.
        shapes: of the parameters, without the axis that layers are stacked on; outputs are the last axis.
        layer: number on the leading axis of the parameters; None if they have none.
        transpose: whether the published matrix is the transpose of ours.
        groups: how often the parameters alternate along the published outputs, each with an equal share of its own: 1,
            or the number of heads.
    """

    name: str
    shape: tuple[int, ...]
    paths: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    layer: int | None
    transpose: bool
    groups: int

    def runs(self, path: str, columns: slice) -> list[slice]:
        """Where outputs of a parameter lie among the published outputs.

        Args:
            path: one of `paths`.
            columns: outputs of that parameter, with start and stop.

        Returns:
            Slices of the published outputs, which hold those asked for in their order.
        """
        widths = [shape[-1] // self.groups for shape in self.shapes]  # outputs within a group
        number = self.paths.index(path)
        width, before = widths[number], sum(widths[:number])
        runs = []
        for group in range(columns.start // width, -(-columns.stop // width)):
            shift = group * (sum(widths) - width) + before
            start, stop = max(columns.start, group * width), min(columns.stop, (group + 1) * width)
            runs.append(slice(start + shift, stop + shift))
        return runs

    def join(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        """The published tensor.

        Args:
            parts: values of the parameters, in the order of `paths`, without the axis of layers.

        Returns:
            Array of `shape`; a view where it can be one.
        """
        grouped = [part.reshape(*part.shape[:-1], self.groups, -1) for part in parts]
        whole = grouped[0] if len(grouped) == 1 else np.concatenate(grouped, axis=-1)
        whole = whole.reshape(*whole.shape[:-2], -1)
        return whole.T if self.transpose else whole


def tensor_entries(config: ModelConfig) -> list[Entry]:
    """Every published tensor of a model, in the order of the table; each part of each parameter is there once.

    Args:
        config: the model.

    Returns:
        List of `Entry`; those of one row of the table are neighbours, in the order of the layers.
    """
    shapes = flat_shapes(config)
    entries = [entry for row in FAMILIES[config.model_type].tensors for entry in _entries(row, shapes, config)]
    found = Counter((path, entry.layer) for entry in entries for path in entry.paths)
    layers = {path: range(config.num_layers) if path.startswith("layers/") else (None,) for path in shapes}
    wanted = Counter((path, layer) for path in shapes for layer in layers[path])
    wrong = {place for place in found | wanted if found[place] != wanted[place]}
    assert not wrong, f"the table of {config.model_type} must cover each parameter once, not so {sorted(wrong)}"
    return entries


def _entries(row: Tensor, shapes: dict[str, tuple[int, ...]], config: ModelConfig) -> list[Entry]:
    paths = (row.path,) if isinstance(row.path, str) else row.path
    if not any(path in shapes for path in paths):
        return []
    stacked = "{layer}" in row.name
    parts = tuple(shapes[path][1:] if stacked else shapes[path] for path in paths)
    ours = (*parts[0][:-1], sum(part[-1] for part in parts))
    published = ours[::-1] if row.transpose else ours
    groups = config.num_heads if row.by_head else 1
    layers = range(config.num_layers) if stacked else (None,)
    return [
        Entry(row.name.format(layer=layer), published, paths, parts, layer, row.transpose, groups) for layer in layers
    ]


def flat_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Path of each parameter -> its shape."""
    return {path: leaf.shape for path, leaf in flatten(param_shapes(config)).items()}


def flatten(tree: Any) -> dict[str, Any]:
    """Path of each leaf, its parts joined by `/` -> the leaf."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
