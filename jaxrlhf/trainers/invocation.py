"""How a run was called, and what it ran on: what the first line of each attempt in events.jsonl tells."""

from __future__ import annotations

import platform
import sys
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

import jaxrlhf


def invocation(mesh: Mesh) -> dict[str, Any]:
    """The command, the versions and the devices of this process's run.

    Args:
        mesh: the devices.

    Returns:
        `command`, a list of arguments; `versions` by name; `devices`, such as "8 x cpu"; `processes`, their number.
    """
    return {
        "command": command(),
        "versions": {"python": platform.python_version(), **versions()},
        "devices": f"{mesh.devices.size} x {mesh.devices.flat[0].device_kind}",
        "processes": jax.process_count(),
    }


def versions() -> dict[str, str]:
    """Those on which the bits of a result depend."""
    return {"jaxrlhf": jaxrlhf.__version__, "jax": jax.__version__}


def command() -> list[str]:
    """The arguments of this process as one would type them: `jaxrlhf ...`, `python -m jaxrlhf ...`, `script.py ...`."""
    program, *arguments = sys.argv
    module = getattr(sys.modules["__main__"], "__spec__", None)
    if module is not None:  # python -m, which puts the path of the module's file in place of its name
        return ["python", "-m", module.name.removesuffix(".__main__"), *arguments]
    installed = Path(program).name == "jaxrlhf"
    return ["jaxrlhf" if installed else program, *arguments]
