"""Parameters from where they are read to the devices that keep them, a piece at a time.

The host holds one piece. On the devices it is brought to the form that is kept, and written to its place in the arrays
that are being filled, which are donated: at no time are there two of them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxrlhf.models.tensors import Index

Arrays = tuple[jax.Array, ...]

Keep = Callable[[jax.Array], Arrays]
"""A float array to the arrays that are kept of it; one with an axis less lacks the axis before the last."""

PIECE_BYTES = 4 << 20
"""Of a piece on the host, those of all devices of the process together, if it is float32."""


def stream(
    read: Callable[[Index], np.ndarray],
    shape: tuple[int, ...],
    sharding: NamedSharding | None,
    keep: Keep,
    along: Sequence[int],
    piece_bytes: int = PIECE_BYTES,
) -> Arrays:
    """Reads an array to where it is kept.

    Args:
        read: index of the array -> that part of it, on the host.
        shape: of the array.
        sharding: which part each device keeps; None keeps all of it on the default device. Only these are read.
        keep: what becomes of each piece, such as a rounded copy. Pieces that `along` cuts must not need each other.
        along: axes that pieces are cut along, the first one first.
        piece_bytes: size of a piece, if it is float32; a larger one where a single entry of all those axes is larger.

    Returns:
        What `keep` makes of the whole array, divided over the devices as that is.
    """
    kept = _kept_shardings(keep, shape, sharding)
    local = shape if sharding is None else sharding.shard_shape(shape)
    pieces = list(_cut(local, along, piece_bytes // (4 * _parts(shape, sharding))))
    if len(pieces) == 1:
        return _keeper(keep, kept)(_place(read, shape, pieces[0], sharding))
    wanted = jax.eval_shape(keep, jax.ShapeDtypeStruct(shape, np.float32))
    arrays = tuple(
        jnp.zeros(like.shape, _filled_as(like.dtype, where), device=where)
        for like, where in zip(wanted, kept, strict=True)
    )
    write = _writer(keep, kept)
    for piece in pieces:
        starts = np.array([axis.start for axis in piece], np.int32)
        arrays = write(arrays, _place(read, shape, piece, sharding), starts)
        jax.block_until_ready(arrays)  # or pieces would pile up on the host
    return tuple(_from_bits(array, like.dtype) for array, like in zip(arrays, wanted, strict=True))


def _parts(shape: tuple[int, ...], sharding: NamedSharding | None) -> int:
    """Most parts that one process reads a piece of each of; all processes must cut alike."""
    if sharding is None:
        return 1
    parts: dict[int, set[str]] = {}
    for device, index in sharding.devices_indices_map(shape).items():
        parts.setdefault(device.process_index, set()).add(str(index))
    return max(map(len, parts.values()))


def _cut(shape: tuple[int, ...], along: Sequence[int], most: int) -> Iterator[Index]:
    """Indices of pieces of one shape, each with so many entries at most if it can be; the last two may overlap."""
    axis, *further = along
    size, entry = shape[axis], math.prod(shape) // shape[axis]
    step = min(size, max(1, most // entry))
    for first in range(0, size, step):
        start = min(first, size - step)
        piece = [slice(0, extent) for extent in shape]
        piece[axis] = slice(start, start + step)
        if not further or step * entry <= most:
            yield tuple(piece)
            continue
        for inner in _cut((*shape[:axis], step, *shape[axis + 1 :]), further, most):
            yield (*inner[:axis], piece[axis], *inner[axis + 1 :])


def _place(
    read: Callable[[Index], np.ndarray], shape: tuple[int, ...], piece: Index, sharding: NamedSharding | None
) -> jax.Array:
    """The same piece of every device's part, side by side as the parts are; equal parts share one reading."""
    if sharding is None:
        return jnp.asarray(read(piece))
    values: dict[tuple[tuple[int, int], ...], np.ndarray] = {}
    placed = []
    for device, part in _local_indices(sharding, shape).items():
        index = tuple(
            slice(whole.start + axis.start, whole.start + axis.stop) for whole, axis in zip(part, piece, strict=True)
        )
        if _key(index) not in values:
            values[_key(index)] = read(index)
        placed.append(jax.device_put(values[_key(index)], device))
    counts = [size // part for size, part in zip(shape, sharding.shard_shape(shape), strict=True)]
    extents = tuple(count * (axis.stop - axis.start) for count, axis in zip(counts, piece, strict=True))
    return jax.make_array_from_single_device_arrays(extents, sharding, placed)


def _local_indices(sharding: NamedSharding, shape: tuple[int, ...]) -> dict[Any, Index]:
    """Device of this process -> the part that it keeps."""
    indices = sharding.addressable_devices_indices_map(shape)
    return {
        device: tuple(slice(*axis.indices(size)[:2]) for axis, size in zip(index, shape, strict=True))
        for device, index in indices.items()
        if index is not None
    }


def _key(index: Index) -> tuple[tuple[int, int], ...]:
    return tuple((axis.start, axis.stop) for axis in index)


def _kept_shardings(
    keep: Keep, shape: tuple[int, ...], sharding: NamedSharding | None
) -> tuple[NamedSharding | None, ...]:
    arrays = jax.eval_shape(keep, jax.ShapeDtypeStruct(shape, np.float32))
    if sharding is None:
        return (None,) * len(arrays)
    axes = (*sharding.spec, *(None,) * (len(shape) - len(sharding.spec)))
    without_inputs = NamedSharding(sharding.mesh, PartitionSpec(*axes[:-2], *axes[-1:]))
    return tuple(sharding if array.ndim == len(shape) else without_inputs for array in arrays)


@functools.cache
def _keeper(keep: Keep, kept: tuple[NamedSharding | None, ...]) -> Callable[[jax.Array], Arrays]:
    return jax.jit(keep) if None in kept else jax.jit(keep, out_shardings=kept)


@functools.cache
def _writer(keep: Keep, kept: tuple[NamedSharding | None, ...]) -> Callable[[Arrays, jax.Array, np.ndarray], Arrays]:
    """(arrays, piece, its start on each device) -> the arrays with the piece in them; the old ones are donated."""
    shardings = [sharding for sharding in kept if sharding is not None]
    if not shardings:
        return jax.jit(lambda arrays, piece, starts: _write(arrays, keep(piece), starts), donate_argnums=0)
    specs = tuple(sharding.spec for sharding in shardings)
    local = jax.shard_map(_write, mesh=shardings[0].mesh, in_specs=(specs, specs, PartitionSpec()), out_specs=specs)
    return jax.jit(
        lambda arrays, piece, starts: local(arrays, keep(piece), starts), donate_argnums=0, out_shardings=kept
    )


def _write(arrays: Arrays, pieces: Arrays, starts: jax.Array) -> Arrays:
    written = []
    for array, piece in zip(arrays, pieces, strict=True):
        own = list(starts) if array.ndim == len(starts) else [*starts[:-2], starts[-1]]
        same = piece if array.dtype == piece.dtype else jax.lax.bitcast_convert_type(piece, array.dtype)
        written.append(jax.lax.dynamic_update_slice(array, same, own))
    return tuple(written)


def _filled_as(dtype: Any, sharding: NamedSharding | None) -> Any:
    """XLA for CPUs brings all of a bfloat16 array to float32 and back to write a piece, but not its bits."""
    platform = jax.default_backend() if sharding is None else next(iter(sharding.device_set)).platform
    return jnp.uint16 if dtype == jnp.bfloat16 and platform == "cpu" else dtype


def _from_bits(array: jax.Array, dtype: Any) -> jax.Array:
    return array if array.dtype == dtype else _to_bfloat16(array)


@functools.partial(jax.jit, donate_argnums=0)
def _to_bfloat16(array: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(array, jnp.bfloat16)
