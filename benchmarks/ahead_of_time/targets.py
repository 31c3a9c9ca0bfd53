"""Devices that are not there, and programs compiled for them."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

# Read once, when a backend starts; the devices of this machine play no part.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # else libtpu waits for a metadata server
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # two processes may compile at a time

import jax  # noqa: E402  (after the environment it reads)
from jax.experimental import topologies  # noqa: E402
from jax.sharding import Mesh  # noqa: E402

from jaxrlhf.sharding.mesh import make_mesh  # noqa: E402

H200 = Path(__file__).with_name("h200.txtpb")
"""What XLA knows of the GPU: cores, memories, versions."""

_HOST_OF = {"v5e": "2x2", "v6e": "2x2", "v5p": "2x2x1", "v4": "2x2x1"}
"""The smallest topology of each TPU; one chip of it stands for itself."""


def devices(target: str) -> Sequence[Any]:
    """The devices of a target.

    Args:
        target: "h200", "h200:8" (GPUs of one host), "v5e", "v5e:2x4", "v6e:4x4", "v5p:4x4x4", "v4:4x4x4" (chips of a
            slice); the name alone is one device.

    Returns:
        Devices to compile for; nothing can run on them.

    Raises:
        ValueError: if the target is unknown.
    """
    name, _, shape = target.partition(":")
    if name == "h200":
        return _gpus(shape or "1")
    if name in _HOST_OF:
        chips = topologies.get_topology_desc(platform="tpu", topology_name=f"{name}:{shape or _HOST_OF[name]}").devices
        return chips if shape else chips[:1]
    raise ValueError(f"target {target!r} is unknown; expected one of {('h200', *_HOST_OF)}, or one with a shape")


def mesh_for(target: str, data: int = -1, fsdp: int = 1, tensor: int = 1) -> Mesh:
    """The mesh of a target's devices; see `jaxrlhf.sharding.mesh.make_mesh`."""
    return make_mesh(data, fsdp, tensor, devices=devices(target))


def compile_for(target: str | Mesh, function: Callable[..., Any], *shapes: Any) -> Any:
    """Compiles a function for a target.

    Args:
        target: see `devices`, or a mesh of such devices; the function is traced with the mesh set.
        function: jitted or not.
        shapes: pytrees of `jax.ShapeDtypeStruct`, which may carry shardings over the mesh.

    Returns:
        `jax.stages.Compiled`: `memory_analysis()` (bytes a device), `as_text()`. What `cost_analysis()` has, for TPUs
        alone, counts the body of a loop once.
    """
    jitted: Any = function if hasattr(function, "lower") else jax.jit(function)
    mesh = mesh_for(target) if isinstance(target, str) else target
    with jax.set_mesh(mesh), _ptxas_on_path():
        return jitted.lower(*shapes).compile()


def bytes_wanted(error: Exception) -> int:
    """Bytes of temporaries that a program would need, from the error of a compiler that finds no room for them.

    Raises:
        Exception: the error itself, if it says something else.
    """
    found = re.search(r"HLO temporaries \(([\d.]+)G\) exceeds", str(error))
    if found is None:
        raise error
    return round(float(found[1]) * 2**30)


def _gpus(count: str) -> Sequence[Any]:
    shape = f"1x{count}x1"  # partitions x hosts x devices a host
    return topologies.get_topology_desc(
        platform="cuda", topology_name=shape, topology=shape, target_config=H200.read_text()
    ).devices


@contextlib.contextmanager
def _ptxas_on_path() -> Any:
    """XLA looks for `ptxas` on the path, where the package that brings it does not put it."""
    spec = importlib.util.find_spec("nvidia")
    folders = [Path(place) / "cu13" / "bin" for place in (spec and spec.submodule_search_locations) or ()]
    before = os.environ.get("PATH", "")
    os.environ["PATH"] = os.pathsep.join([*map(str, folders), before])
    try:
        yield
    finally:
        os.environ["PATH"] = before
