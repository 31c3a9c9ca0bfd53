"""How the hot path is divided over the mesh: rows over ("data", "fsdp"), the vocabulary over "tensor".

Devices exchange maxima, sums and gradients, never logits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from jaxrlhf.kernels.statistics import Stats, combine_stats
from jaxrlhf.ops.stats import reduce_stacked
from jaxrlhf.sharding.mesh import AXES, BATCH_AXES, axis_size, divides
from jaxrlhf.types import Head

T = TypeVar("T")


class Division(NamedTuple):
    """Over which axes of the mesh what is divided; an empty tuple means that it stays whole. Static.

    Attributes:
        rows: of hidden states and targets.
        vocabulary: of the heads.
        width: of the gradient by a head's weight, which each device needs a part of only.
    """

    rows: tuple[str, ...] = ()
    vocabulary: tuple[str, ...] = ()
    width: tuple[str, ...] = ()


def divide(rows: int, vocab: int, width: int) -> tuple[Division, int, int]:
    """The division over the mesh that is set, and the rows and words that one device has of it.

    What does not divide evenly stays whole; without a mesh, and within a `shard_map` or `pmap`, everything does.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.axis_names != AXES or any(kind != AxisType.Auto for kind in mesh.axis_types):
        return Division(), rows, vocab

    def fitting(size: int, axes: tuple[str, ...]) -> tuple[str, ...]:
        parts = axis_size(axes, mesh.shape)
        return axes if parts > 1 and divides(size, axes, mesh.shape) else ()

    over = Division(fitting(rows, BATCH_AXES), fitting(vocab, ("tensor",)), fitting(width, ("fsdp",)))
    if not over.rows:
        over = over._replace(width=())
    return over, rows // axis_size(over.rows, mesh.shape), vocab // axis_size(over.vocabulary, mesh.shape)


def spread(body: Callable[..., T], over: Division, in_specs: Any, out_specs: Any) -> Callable[..., T]:
    """Runs a function on each device's part; as it is if nothing is divided."""
    if over == Division():
        return body
    return jax.shard_map(body, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def head_spec(head: Head, over: Division, width: tuple[str, ...] = ()) -> Head:
    """`PartitionSpec`s of a head's arrays."""
    axes = {"v": over.vocabulary or None, "d": width or None}
    weight: Any = P(*(axes[axis] for axis in head.layout))
    return dataclasses.replace(head, weight=weight, bias=None if head.bias is None else P(axes["v"]))


def row_spec(over: Division) -> Any:
    """`PartitionSpec` of arrays [N, ...]."""
    return P(over.rows or None)


def whole_spec() -> Any:
    """`PartitionSpec` of what every device holds whole."""
    return P()


def first_word(over: Division, words: int) -> jax.Array | int:
    """The first of the `words` words that this device has."""
    return words * jax.lax.axis_index(over.vocabulary) if over.vocabulary else 0


def combine_vocabulary(stats: Stats, over: Division) -> Stats:
    """Statistics of the whole vocabulary, from those of each device's part."""
    for axis in over.vocabulary:
        stats = combine_stats(stats, axis)
    return stats


def sum_hidden(gradient: jax.Array, over: Division) -> jax.Array:
    """The gradient by hidden states, to which each part of the vocabulary adds."""
    return jax.lax.psum(gradient, over.vocabulary) if over.vocabulary else gradient


def sum_weight(gradient: jax.Array, axis: int, over: Division) -> jax.Array:
    """The gradient by a head's weight, to which all rows add; of `axis`, its width, each device keeps its part."""
    for name in over.width:  # first: the rest is added up of a part alone
        gradient = jax.lax.psum_scatter(gradient, name, scatter_dimension=axis, tiled=True)
    whole = tuple(name for name in over.rows if name not in over.width)
    return jax.lax.psum(gradient, whole) if whole else gradient


def sum_rows(values: T, over: Division) -> T:
    """Sums, to which all rows add."""
    return jax.lax.psum(values, over.rows) if over.rows else values


def merge_rows(metrics: T, over: Division) -> T:
    """Metrics of all rows, from those of each device's."""
    return reduce_stacked(jax.lax.all_gather(metrics, over.rows)) if over.rows else metrics


def most_rows(tiles: jax.Array | int, over: Division) -> jax.Array | int:
    """The largest number of tiles that any device visits: devices that exchange something must do so equally often."""
    return jax.lax.pmax(tiles, over.rows) if over.vocabulary and over.rows else tiles
