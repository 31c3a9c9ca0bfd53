"""Published tensors and the parts of parameters that they are: the table of a family, written out for a config."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax

from jaxrlhf.models.config import ModelConfig
from jaxrlhf.models.decoder import param_shapes
from jaxrlhf.models.folder import FAMILIES


class Entry(NamedTuple):
    """One published tensor and the part of a parameter that it is.

    Attributes:
        name: published name.
        shape: published shape.
        path: of the parameter.
        layer: number on the leading axis of the parameter; None if it has none.
        transpose: whether the published matrix is the transpose of ours.
    """

    name: str
    shape: tuple[int, ...]
    path: str
    layer: int | None
    transpose: bool


def tensor_entries(config: ModelConfig) -> list[Entry]:
    """Every published tensor of a model, in the order of the table; each part of each parameter is there once.

    Args:
        config: the model.

    Returns:
        List of `Entry`; those of one parameter are neighbours, in the order of the layers.
    """
    shapes = flat_shapes(config)
    entries: list[Entry] = []
    for name, path, transpose in FAMILIES[config.model_type].tensors:
        if path not in shapes:
            continue
        stacked = "{layer}" in name
        shape = shapes[path][1:] if stacked else shapes[path]
        published = shape[::-1] if transpose else shape
        layers = range(config.num_layers) if stacked else (None,)
        entries += [Entry(name.format(layer=layer), published, path, layer, transpose) for layer in layers]
    assert {entry.path for entry in entries} == set(shapes), "the table of the family must cover every parameter"
    return entries


def flat_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Path of each parameter -> its shape."""
    return {path: leaf.shape for path, leaf in flatten(param_shapes(config)).items()}


def flatten(tree: Any) -> dict[str, Any]:
    """Path of each leaf, its parts joined by `/` -> the leaf."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
