"""The section `correctness`, its second half: the quick part of the test suite, with jax on the device."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.device_check.shapes import Shapes
from benchmarks.device_check.sheet import Row, Sheet

ROOT = Path(__file__).resolve().parents[2]

NEEDS_EIGHT = "not sharded and not devices and not mesh and not division"
"""Tests with these words in their names, or their files', need the eight devices that tests/conftest.py simulates."""

ENVIRONMENT = {
    # Tests compare with products of their own, which would be TF32 or bfloat16 passes; tolerances are those of float32.
    "JAX_DEFAULT_MATMUL_PRECISION": "highest",
}


def measure(sheet: Sheet, shapes: Shapes, platform: str) -> None:
    """Writes a row for each folder of tests.

    Args:
        sheet: the section's.
        shapes: which folders.
        platform: what jax calls the device.
    """
    for folder in shapes.suite:
        row = {"name": folder, "shape": "pytest", "dtype": "float32, HIGHEST", "implementation": "jax"}
        if importlib.util.find_spec("pytest") is None:
            sheet.add(**row, skipped="pytest is not installed")
        elif not sheet.clock.left():
            sheet.add(**row, skipped="time")
        else:
            sheet.add(**row, **run_tests(folder, platform, sheet.clock.left()))


def run_tests(folder: str, platform: str, seconds: float) -> Row:
    """Runs the tests of a folder in a process of their own.

    Returns:
        `ok` and `worst`, which is pytest's last line, with the first tests that failed as `failures`; `skipped` where
        the time ran out.
    """
    command = [sys.executable, "-m", "pytest", str(ROOT / folder), "-q", "--maxfail=10", "--tb=line", "-k", NEEDS_EIGHT]
    # No plugins of ours that may be missing here, and no warning is an error: compilers of devices have their own.
    command += ["-p", "no:xdist", "-p", "no:cacheprovider", "-W", "default"]
    # The CPU stays there for what asks for it by name.
    backends = platform if platform == "cpu" else f"{'cuda' if platform == 'gpu' else platform},cpu"
    environment = {**os.environ, **ENVIRONMENT, "JAX_PLATFORMS": backends}
    began = time.monotonic()
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired:
        return {"skipped": "time", "seconds": seconds}
    return {**outcome(done.returncode, done.stdout + done.stderr), "seconds": time.monotonic() - began}


def outcome(status: int, output: str) -> Row:
    """What pytest said: its last line, and the tests that failed."""
    print(output[-4000:], flush=True)
    lines = [line for line in output.splitlines() if line.strip()]
    failures = re.findall(r"^(?:FAILED|ERROR) (\S+)", output, flags=re.MULTILINE)
    row = {"ok": status == 0, "worst": lines[-1].strip("= ") if lines else f"pytest ended with status {status}"}
    return row | ({"failures": failures} if failures else {})
