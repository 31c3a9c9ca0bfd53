"""Runs sections, each part in a process of its own: one that fails, hangs or dies leaves the others."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks.device_check.sections import Part, Platform
from benchmarks.device_check.sheet import Row, read_rows

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache" / "device_check"
"""Of compiled programs; beside the checkout and not with the results, which are few files."""

CommandFn = Callable[[Part, str], list[str]]
"""A part and its section to the command of its process."""


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
) -> list[Row]:
    """Runs all parts of all sections, one after another.

    Args:
        sections: name -> parts, in order.
        folder: where `SECTION.jsonl` goes, in place of an older one, and what the processes print, `log.txt`.
        command: how a part is started.
        environment: of the processes.

    Returns:
        The rows of all sections; a part that did not end well is a row too, with `failed`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    for section, parts in sections.items():
        file = folder / f"{section}.jsonl"
        file.unlink(missing_ok=True)
        for part in parts:
            _run_part(part, section, file, command(part, section), environment)
        rows += read_rows(file) if file.exists() else []
    return rows


def _run_part(part: Part, section: str, file: Path, command: list[str], environment: dict[str, str]) -> None:
    print(f"== {section}: {part.name}, {part.seconds:.0f} s at most", flush=True)
    began, log = time.monotonic(), file.parent / "log.txt"
    with log.open("a", encoding="utf-8") as out:
        out.write(f"== {section}: {part.name}\n")
        out.flush()
        process = subprocess.Popen(command, env=environment, stdout=out, stderr=out, start_new_session=True)
        try:
            status: int | None = process.wait(part.seconds)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            _stop(process)
    if status != 0:
        why = f"stopped after {part.seconds:.0f} s" if status is None else f"ended with status {status}"
        failed = {"section": section, "name": f"the whole of {part.name}", "failed": f"{why}: {_last_line(log)}"}
        with file.open("a", encoding="utf-8") as out:
            out.write(json.dumps(failed) + "\n")
        print(f"   {failed['failed']}", flush=True)
    print(f"   {time.monotonic() - began:.0f} s", flush=True)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ends the process and all that it started: they are a session of their own."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1][:300]


def is_wrong(row: Row) -> bool:
    """Whether a row makes the run fail: a result that is not right, a check of it that failed, a part that did not end.

    A peer that fails is in the table, and no more.
    """
    died = row.get("name", "").startswith("the whole of ")
    return row.get("ok") is False or ("failed" in row and (died or row["section"] == "correctness"))
