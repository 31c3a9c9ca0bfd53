"""Which part of each parameter a device holds: rules on parameter paths, outside the model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxrlhf.sharding.mesh import Axis, axis_size, divides

Rules = Sequence[tuple[str, PartitionSpec]]
"""(regular expression searched in the path, spec of the last axes); the first that matches decides."""

# Paths end in a parameter's path also within optimizer states, hence `$` and no `^`. A spec names the last axes;
# those before, such as the one that layers are stacked on, stay whole.
RULES: Rules = (
    (r"(embed_tokens/embedding|lm_head/kernel)$", PartitionSpec("tensor", "fsdp")),
    (r"embed_positions/embedding$", PartitionSpec(None, "fsdp")),
    (r"(q|k|v|gate|up)_proj/kernel$", PartitionSpec("fsdp", "tensor")),
    (r"(q|k|v|gate|up)_proj/(bias|kernel_scale)$", PartitionSpec("tensor")),
    (r"(q|k|v|gate|up)_proj/lora_a$", PartitionSpec("fsdp", None)),
    (r"(q|k|v|gate|up)_proj/lora_b$", PartitionSpec(None, "tensor")),
    (r"(o|down)_proj/kernel$", PartitionSpec("tensor", "fsdp")),
    (r"(o|down)_proj/(bias|kernel_scale)$", PartitionSpec()),
    (r"(o|down)_proj/lora_a$", PartitionSpec("tensor", None)),
    (r"(o|down)_proj/lora_b$", PartitionSpec(None, "fsdp")),
    (r"norm/(scale|bias)$", PartitionSpec()),
    (r"score/kernel$", PartitionSpec()),
)


class KeptWhole(NamedTuple):
    """A dimension that a rule would divide, and that does not divide.

    Attributes:
        path: of the array.
        dim: of the array, from 0.
        size: of the dimension.
        axis: that the rule names.
        parts: that the axis has.
    """

    path: str
    dim: int
    size: int
    axis: Axis
    parts: int

    def __str__(self) -> str:
        """One line for a log."""
        found = f"{self.path}: dimension {self.dim} of {self.size}"
        return f"{found} does not divide over {self.axis}={self.parts}; kept whole"


def shardings_for(tree: Any, mesh: Mesh, rules: Rules = RULES) -> tuple[Any, list[KeptWhole]]:
    """Where each array of parameters, optimizer states or both belongs.

    Args:
        tree: pytree of arrays or `jax.ShapeDtypeStruct`. Scalars are replicated and need no rule; so is an array with
            fewer axes than its rule names (a factored statistic, say).
        mesh: the mesh.
        rules: see `Rules`.

    Returns:
        The same tree of `NamedSharding`, and the dimensions that stay whole because they do not divide.

    Raises:
        ValueError: naming every array that no rule matches.
    """
    unmatched: list[str] = []
    kept: list[KeptWhole] = []

    def place(key_path: Any, leaf: Any) -> NamedSharding:
        path = jax.tree_util.keystr(key_path, simple=True, separator="/")
        spec = _find(path, leaf.shape, rules)
        if spec is None:
            unmatched.append(f"{path} {leaf.shape}")
            return NamedSharding(mesh, PartitionSpec())
        return NamedSharding(mesh, _fit(path, leaf.shape, spec, mesh, kept))

    shardings = jax.tree_util.tree_map_with_path(place, tree)
    if unmatched:
        raise ValueError(
            f"no sharding rule matches {', '.join(unmatched)}; add one (pattern, PartitionSpec) to the rules"
        )
    return shardings, kept


def _find(path: str, shape: tuple[int, ...], rules: Rules) -> PartitionSpec | None:
    if not shape:
        return PartitionSpec()
    spec = next((spec for pattern, spec in rules if re.search(pattern, path)), None)
    return PartitionSpec() if spec is not None and len(spec) > len(shape) else spec


def _fit(path: str, shape: tuple[int, ...], spec: PartitionSpec, mesh: Mesh, kept: list[KeptWhole]) -> PartitionSpec:
    leading = len(shape) - len(spec)
    axes: list[Axis] = [*(None for _ in range(leading)), *spec]
    for dim, axis in enumerate(axes):
        if not divides(shape[dim], axis, mesh.shape):
            kept.append(KeptWhole(path, dim, shape[dim], axis, axis_size(axis, mesh.shape)))
            axes[dim] = None
    return PartitionSpec(*axes)
