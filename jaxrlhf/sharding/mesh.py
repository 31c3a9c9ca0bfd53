"""The mesh of named axes ("data", "fsdp", "tensor"), and constraints on activations that name them."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, PartitionSpec

from jaxrlhf.sharding.config import MeshConfig
from jaxrlhf.sharding.threads import spare_threads

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")
"""The axes that rows are divided over."""

Axis = str | tuple[str, ...] | None
"""What one dimension of an array is divided over; None means that it stays whole."""


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh whose axes the compiler divides work over by itself (Auto axis types); enter it with `jax.set_mesh`.

    Args:
        data: size of the axis of rows alone.
        fsdp: size of the axis of rows and parameters.
        tensor: size of the axis of widths. One of the three may be -1: whatever the others leave.
        devices: jax devices; None means all.

    Returns:
        Mesh with axes ("data", "fsdp", "tensor").

    Raises:
        ValueError: if the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = _resolve((data, fsdp, tensor), len(devices))
    return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def open_mesh(config: MeshConfig) -> Mesh:
    """The mesh that a config asks for; call it before anything else touches a device.

    Raises:
        ValueError: if the sizes do not multiply to the number of devices, or the CPU was divided otherwise before.
    """
    spare_threads(os.environ, config.cpu_devices, alone=not jax.distributed.is_initialized())
    if config.cpu_devices is not None:
        divide_cpu(config.cpu_devices)
    return make_mesh(config.data, config.fsdp, config.tensor)


def divide_cpu(devices: int) -> None:
    """Makes the processor count as several devices; call it before anything else touches a device.

    Raises:
        ValueError: if something did, and the processor was divided otherwise.
    """
    try:
        jax.config.update("jax_num_cpu_devices", devices)
    except RuntimeError as error:
        found = jax.local_device_count("cpu")
        raise ValueError(
            f"mesh.cpu_devices={devices}, but this process has made {found} of its cores already"
        ) from error


def constrain(x: jax.Array, *spec: Axis) -> jax.Array:
    """Tells the compiler how an activation is divided over the mesh that is set; without a mesh does nothing.

    Args:
        x: any array.
        spec: one entry a dimension. A dimension that does not divide over its axes is left whole: a few rows on many
            devices run, if not fast.

    Returns:
        `x`, constrained.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    fitted = [axis if divides(size, axis, mesh.shape) else None for size, axis in zip(x.shape, spec, strict=True)]
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*fitted))


def target_platform() -> str:
    """What the program is compiled for: "cpu", "cuda", "rocm" or "tpu".

    That of the mesh's devices if a mesh is set, else that of jax's default device; so a program that is compiled for
    devices which are not there is traced under a mesh of them.
    """
    return platform_of(jax.sharding.get_abstract_mesh().abstract_device or _default_device())


def platform_of(device: Any) -> str:
    """What programs for a device, or an abstract one, are compiled for: "cpu", "cuda", "rocm" or "tpu"."""
    if device.platform in ("gpu", "cuda", "rocm"):
        return "cuda" if "NVIDIA" in device.device_kind else "rocm"
    return device.platform


def check_batch(mesh: Mesh, name: str, size: int) -> None:
    """Checks that a number of rows divides over the devices.

    Args:
        mesh: the mesh.
        name: of the option that holds the number, for the message.
        size: the number of rows.

    Raises:
        ValueError: if it does not.
    """
    if not divides(size, BATCH_AXES, mesh.shape):
        count = axis_size(BATCH_AXES, mesh.shape)
        raise ValueError(
            f"{name}={size} does not divide over {count} devices on axes {BATCH_AXES}; use a multiple of {count}"
        )


def axis_size(axis: Axis, sizes: Mapping[str, int]) -> int:
    """Number of parts that an axis, several or none make, given the size of each."""
    names = (axis,) if isinstance(axis, str) else axis or ()
    return math.prod(sizes[name] for name in names)


def divides(size: int, axis: Axis, sizes: Mapping[str, int]) -> bool:
    """Whether a dimension of `size` divides evenly over an axis, several or none, given the size of each."""
    return size % axis_size(axis, sizes) == 0


def _default_device() -> Any:
    """Where jax runs what is divided over no mesh; `jax_default_device` is a device, a platform's name or None."""
    config: Any = jax.config  # whose flags are attributes that type checkers do not see
    chosen = config.jax_default_device
    return jax.devices(chosen)[0] if chosen is None or isinstance(chosen, str) else chosen


def _resolve(sizes: tuple[int, int, int], devices: int) -> tuple[int, ...]:
    asked = " x ".join(f"{name}={size}" for name, size in zip(AXES, sizes, strict=True))
    if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise ValueError(f"mesh {asked}: sizes must be positive, and at most one of them -1 (the rest)")
    known = math.prod(size for size in sizes if size != -1)
    rest = devices // known
    if known * (rest if -1 in sizes else 1) != devices:
        verb = "does not divide" if -1 in sizes else "is not"
        raise ValueError(
            f"mesh {asked}: {known} {verb} the number of devices, {devices}; change a size, or set it to -1"
        )
    return tuple(rest if size == -1 else size for size in sizes)
