"""Is the device there? Asked in a process that ends at once, since one that starts jax on a TPU keeps it to itself."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping

from benchmarks.device_check.sections import Platform

QUESTION = "import jax; print(jax.devices()[0].platform)"

PATIENCE_S = 120.0
"""Starting jax takes seconds; on a machine without a TPU libtpu may look for one for minutes."""


def why_absent(platform: Platform, environment: Mapping[str, str], seconds: float = PATIENCE_S) -> str | None:
    """Why nothing can run here, in one line; None if jax sees the device.

    Args:
        platform: what jax should see.
        environment: of the processes that are to run.
        seconds: that starting jax may take.
    """
    command = [sys.executable, "-c", QUESTION]
    try:
        asked = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return f"jax found no {platform.upper()} within {seconds:.0f} s"
    said = (asked.stdout if asked.returncode == 0 else asked.stderr).split("\n")
    last = next((line.strip() for line in reversed(said) if line.strip()), f"status {asked.returncode}")
    if asked.returncode != 0:
        return f"jax does not start on a {platform.upper()} here ({last[:300]})"
    if last != platform:
        asked_for = environment.get("JAX_PLATFORMS", "not set")
        return f"jax sees no {platform.upper()} here (but a {last.upper()}; JAX_PLATFORMS is {asked_for})"
    return None
