"""Threads for the devices that a processor is divided into."""

from __future__ import annotations

import os
import re
from collections.abc import MutableMapping

# How many threads XLA's CPU client starts; read when the first device is touched. It prefers the first.
_VARIABLES = ("PJRT_NPROC", "NPROC")
_FLAG = re.compile(r"--xla_force_host_platform_device_count=(\d+)")
_COLLECTIVES = 8  # that one device waits in at a time, at most: sums of gradients that do not need each other


def spare_threads(environ: MutableMapping[str, str], devices: int | None = None, *, alone: bool = True) -> None:
    """Gives devices of a CPU threads to wait in; call it before anything touches a device.

    XLA starts a thread for each core or device, whichever are more, and a device that waits in two collectives holds
    two of them. On a machine of few cores the device that the others wait for may then find none, and the process is
    aborted after 40 seconds. A number that is set already is left as it is.

    Args:
        environ: the variables of this process.
        devices: that its cores are divided into; None reads it from XLA_FLAGS, 1 if they do not say.
        alone: whether there is no other process to wait for.
    """
    if devices is None:
        devices = int((_FLAG.findall(environ.get("XLA_FLAGS", "")) or ["1"])[-1])
    if (devices > 1 or not alone) and not any(name in environ for name in _VARIABLES):
        environ[_VARIABLES[0]] = str(max(os.cpu_count() or 1, _COLLECTIVES * (devices + 1)))
