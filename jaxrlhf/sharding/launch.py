"""Several processes of one program on this machine, joined over loopback: to try on a laptop what runs on a pod."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import TextIO

_GRACE_SECONDS = 10.0  # between the request to stop and the kill
_POLL_SECONDS = 0.05


def launch(command: Sequence[str], *, processes: int, devices: int | None = None, stream: TextIO | None = None) -> int:
    """Runs a command in several processes, and stops all of them when one fails.

    Args:
        command: program and arguments, the same for each process. Each finds the address of the first in
            `JAXRLHF_COORDINATOR`, how many there are in `JAXRLHF_NUM_PROCESSES` and which one it is, from 0, in
            `JAXRLHF_PROCESS_ID`.
        processes: number of processes, positive.
        devices: number of simulated CPU devices of each; None leaves the devices as they are.
        stream: where their output goes, each line after `[process] `; None means stdout.

    Returns:
        0, or the status of the first process that failed (128 + the signal that ended it).

    Raises:
        ValueError: no process is asked for.
        FileNotFoundError: there is no such program.
    """
    if processes < 1 or not command:
        raise ValueError(f"processes={processes} of {list(command)}; expected at least one process and a command")
    coordinator = f"127.0.0.1:{_free_port()}"
    stream = sys.stdout if stream is None else stream
    children: list[subprocess.Popen[str]] = []
    readers: list[threading.Thread] = []
    try:
        for process in range(processes):
            environment = _environment(coordinator, processes, process, devices)
            children.append(_start(command, environment))
            readers.append(threading.Thread(target=_copy, args=(children[-1], f"[{process}] ", stream)))
            readers[-1].start()
        return _first_failure(children)
    finally:
        _stop(children)
        for reader in readers:
            reader.join()


def _environment(coordinator: str, processes: int, process: int, devices: int | None) -> dict[str, str]:
    variables = {
        "JAXRLHF_COORDINATOR": coordinator,
        "JAXRLHF_NUM_PROCESSES": str(processes),
        "JAXRLHF_PROCESS_ID": str(process),
        "PYTHONUNBUFFERED": "1",
    }
    if devices is not None:
        flags = os.environ.get("XLA_FLAGS", "")
        variables["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={devices}".strip()
        variables["JAX_PLATFORMS"] = "cpu"
    return os.environ | variables


def _start(command: Sequence[str], environment: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,  # so that what a process starts is stopped with it
    )


def _copy(child: subprocess.Popen[str], prefix: str, stream: TextIO) -> None:
    assert child.stdout is not None
    with child.stdout:
        for line in child.stdout:
            stream.write(prefix + line.rstrip("\n") + "\n")
            stream.flush()


def _first_failure(children: list[subprocess.Popen[str]]) -> int:
    while True:
        statuses = [child.poll() for child in children]
        failed = [status for status in statuses if status]
        if failed:
            return failed[0] if failed[0] > 0 else 128 - failed[0]
        if all(status == 0 for status in statuses):
            return 0
        time.sleep(_POLL_SECONDS)


def _stop(children: list[subprocess.Popen[str]]) -> None:
    _signal(children, signal.SIGTERM)
    deadline = time.monotonic() + _GRACE_SECONDS
    while any(child.poll() is None for child in children) and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
    _signal(children, signal.SIGKILL)
    for child in children:
        child.wait()


def _signal(children: list[subprocess.Popen[str]], number: signal.Signals) -> None:
    for child in children:
        with contextlib.suppress(ProcessLookupError):  # nothing is left of the group, which may outlive the process
            os.killpg(child.pid, number)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
