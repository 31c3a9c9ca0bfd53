"""Threads for the devices that a processor is divided into."""

from __future__ import annotations

import os
from collections.abc import MutableMapping

_VARIABLE = "PJRT_NPROC"  # of XLA: how many threads its CPU client starts; read when the first device is touched
_COLLECTIVES = 8  # that one device waits in at a time, at most: sums of gradients that do not need each other


def spare_threads(environ: MutableMapping[str, str], devices: int = 1) -> None:
    """Gives devices of a CPU threads to wait in; call it before anything touches a device.

    XLA starts a thread for each core or device, whichever are more, and a device that waits in two collectives holds
    two of them. On a machine of few cores the device that the others wait for may then find none, and the process is
    aborted after 40 seconds. A number that is set already is left as it is.

    Args:
        environ: the variables of this process, or of one to be started.
        devices: of that process.
    """
    environ.setdefault(_VARIABLE, str(max(os.cpu_count() or 1, _COLLECTIVES * (devices + 1))))
