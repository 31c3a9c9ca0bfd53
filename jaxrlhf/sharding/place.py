"""Between the host and the mesh: rows to global arrays, values to every device, and back."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxrlhf.sharding.mesh import BATCH_AXES


def over_rows(mesh: Mesh) -> NamedSharding:
    """The sharding of arrays [B, ...] whose rows are divided over ("data", "fsdp")."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of arrays that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def shardings_of(tree: Any) -> Any:
    """The sharding of each array of a pytree."""
    return jax.tree.map(lambda leaf: leaf.sharding, tree)


def place_batch(batch: Any, mesh: Mesh) -> Any:
    """Global arrays from the rows that each process holds.

    Args:
        batch: pytree of numpy arrays [B / processes, ...]: the rows `process_rows` of the global batch.
        mesh: the mesh.

    Returns:
        The same tree of global arrays [B, ...], rows divided over ("data", "fsdp").
    """
    sharding = over_rows(mesh)
    return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(sharding, np.asarray(leaf)), batch)


def process_rows(mesh: Mesh, size: int) -> slice:
    """Which rows of a global batch this process loads; processes that only split widths load the same ones.

    Args:
        mesh: the mesh.
        size: rows of the global batch, B; divides over the mesh (`check_batch`).

    Returns:
        Slice of the rows, from 0 to B.

    Raises:
        ValueError: if the devices of this process do not hold neighbouring rows.
    """
    indices = over_rows(mesh).addressable_devices_indices_map((size,)).values()
    parts = sorted({index[0].indices(size)[:2] for index in indices if index is not None})
    if any(left[1] != right[0] for left, right in zip(parts, parts[1:], strict=False)):
        raise ValueError(
            f"process {jax.process_index()} would hold rows {parts}, which are not neighbours; "
            "order the devices of the mesh by process"
        )
    return slice(parts[0][0], parts[-1][1])


def local_rows(array: jax.Array) -> np.ndarray:
    """The rows of a global array that this process holds, as `process_rows` names them.

    Args:
        array: [B, ...], rows divided over the mesh or not at all.

    Returns:
        Numpy array of this process's rows, each once, in their order.
    """
    shards = {shard.index[0].indices(array.shape[0])[0]: shard.data for shard in array.addressable_shards}
    return np.concatenate([np.asarray(shards[start]) for start in sorted(shards)])


def place_replicated(tree: Any, mesh: Mesh) -> Any:
    """The same value on every device.

    Args:
        tree: pytree of numpy arrays or numbers, equal in all processes.
        mesh: the mesh.

    Returns:
        The same tree of replicated global arrays.
    """
    sharding = replicated(mesh)

    def place(leaf: Any) -> jax.Array:
        value = np.asarray(leaf)
        return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])

    return jax.tree.map(place, tree)


def to_host(tree: Any) -> Any:
    """Whole arrays in the memory of every process; all processes must call it.

    Args:
        tree: pytree of arrays, which may be spread over the devices of many processes.

    Returns:
        The same tree of numpy arrays.
    """

    def gather(leaf: Any) -> np.ndarray:
        spread = isinstance(leaf, jax.Array) and not leaf.is_fully_addressable
        return np.asarray(multihost_utils.process_allgather(leaf, tiled=True) if spread else leaf)

    return jax.tree.map(gather, tree)
