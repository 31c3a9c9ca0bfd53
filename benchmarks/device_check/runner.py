"""Runs sections, each part in a process of its own: one that fails, hangs or dies leaves the others."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from benchmarks.device_check.sections import Part, Platform
from benchmarks.device_check.sheet import Row, read_rows
from benchmarks.device_check.stopping import Stopped

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache" / "device_check"
"""Of compiled programs; beside the checkout and not with the results, which are few files."""

NOT_MADE = ("time", "pytest is not installed")
"""Why a check is skipped that the device could have."""

_HEADING = "== "
"""Begins what a part prints, in the log."""

CommandFn = Callable[[Part, str], list[str]]
"""A part and its section to the command of its process."""


class Run(NamedTuple):
    """What came of a run.

    Attributes:
        rows: of all sections that were begun; a part that did not end well is a row too, with `failed`.
        stopped: what stopped it before its end.
    """

    rows: list[Row]
    stopped: Stopped | None = None


def environment_of(platform: Platform, *, tiny: bool) -> dict[str, str]:
    """The environment of a part; what the user set is kept, apart from the platform of a tiny run."""
    set_here = {
        "JAX_COMPILATION_CACHE_DIR": str(CACHE),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        # Torch shares the device, and memory that nobody uses is not to be counted.
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    paths = [str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    forced = {"PYTHONPATH": os.pathsep.join(path for path in paths if path), "PYTHONUNBUFFERED": "1"}
    if tiny:
        # Nobody reads the times of a tiny run, which is all compilation.
        forced |= {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        set_here["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "true"
    elif platform == "gpu":
        set_here["JAX_PLATFORMS"] = "cuda,cpu"
    return {**set_here, **os.environ, **forced}


def command_of(platform: Platform, folder: Path, *, tiny: bool) -> CommandFn:
    """How a part is started."""

    def command(part: Part, section: str) -> list[str]:
        words = [sys.executable, "-m", "benchmarks.device_check.part", part.name, "--section", section]
        words += ["--platform", platform, "--folder", str(folder), "--seconds", str(part.row_seconds)]
        return words + (["--tiny"] if tiny else [])

    return command


def run_sections(
    sections: Mapping[str, tuple[Part, ...]], folder: Path, command: CommandFn, environment: dict[str, str]
) -> Run:
    """Runs all parts of all sections, one after another; `Stopped` ends the part that is running, and the run.

    Args:
        sections: name -> parts, in order.
        folder: where `SECTION.jsonl` goes, in place of an older one, and what the processes print, `log.txt`.
        command: how a part is started.
        environment: of the processes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    for section, parts in sections.items():
        file = folder / f"{section}.jsonl"
        file.unlink(missing_ok=True)
        try:
            for part in parts:
                _run_part(part, section, file, command(part, section), environment)
        except Stopped as stop:
            return Run(rows + _rows_of(file), stop)
        rows += _rows_of(file)
    return Run(rows)


def _rows_of(file: Path) -> list[Row]:
    return read_rows(file) if file.exists() else []


def _run_part(part: Part, section: str, file: Path, command: list[str], environment: dict[str, str]) -> None:
    print(f"== {section}: {part.name}, {part.seconds:.0f} s at most", flush=True)
    began, log, stop = time.monotonic(), file.parent / "log.txt", None
    with log.open("a", encoding="utf-8") as out:
        out.write(f"{_HEADING}{section}: {part.name}\n")
        out.flush()
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out, process_group=0
        )
        try:
            why = _described(process.wait(part.seconds))
        except subprocess.TimeoutExpired:
            why = f"stopped after {part.seconds:.0f} s"
        except Stopped as reason:
            why, stop = str(reason), reason
        finally:
            _end(process)
    if why is not None:
        failed = {"section": section, "name": f"the whole of {part.name}", "failed": why + _last_words(log)}
        with file.open("a", encoding="utf-8") as out:
            out.write(json.dumps(failed) + "\n")
        print(f"   {failed['failed']}", flush=True)
    print(f"   {time.monotonic() - began:.0f} s", flush=True)
    if stop is not None:
        raise stop


def _described(status: int) -> str | None:
    """How a process ended, if not well."""
    if status < 0:
        return f"ended by {signal.Signals(-status).name}"
    return f"ended with status {status}" if status else None


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends the process and all that it started, which are a group of their own, and may outlive it."""
    with contextlib.suppress(ProcessLookupError):  # nothing is left of the group
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _last_words(log: Path) -> str:
    """The last line that the part printed, after a colon; nothing if there is none."""
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return "" if lines[-1].startswith(_HEADING) else f": {lines[-1][:300]}"


def is_wrong(row: Row) -> bool:
    """Whether a row makes the run fail: a result that is not right, a check that was not made, a part that did not end.

    Another row that fails is in the table, and no more.
    """
    died = row.get("name", "").startswith("the whole of ")
    unchecked = row["section"] == "correctness" and ("failed" in row or row.get("skipped") in NOT_MADE)
    return row.get("ok") is False or unchecked or ("failed" in row and died)
