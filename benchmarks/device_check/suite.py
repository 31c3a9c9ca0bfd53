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

WRONG = ("assert", "AssertionError", "Failed: ")
"""What begins the reason of a test that found something wrong; others could not run, for want of a library say."""

ENVIRONMENT = {
    # Wide enough for pytest to give reasons.
    "COLUMNS": "500",
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
            sheet.add(**row, skipped="pytest is not installed")  # one of `runner.NOT_MADE`, as is the next
        elif not sheet.clock.left():
            sheet.add(**row, skipped="time")
        else:
            sheet.add(**row, **run_tests(folder, platform, sheet.clock.left()))


def run_tests(folder: str, platform: str, seconds: float) -> Row:
    """Runs the tests of a folder in a process of their own.

    Returns:
        See `outcome`; `skipped` where the time ran out.
    """
    command = [sys.executable, "-m", "pytest", str(ROOT / folder), "-q", "--maxfail=10", "--tb=line", "-k", NEEDS_EIGHT]
    # No plugins of ours that may be missing here, and no warning is an error: compilers of devices have their own. Nor
    # is an option of the project's that this machine's pytest is too old for.
    command += ["-p", "no:xdist", "-p", "no:cacheprovider", "-W", "default"]
    command += ["-o", "addopts=--import-mode=importlib", "-m", "not slow"]
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
    """What pytest said.

    Returns:
        `ok`, and its last line as `worst`, if tests passed or found something wrong; `failed` if they could not run.
        The tests that did not pass are `failures`.
    """
    print(output[-4000:], flush=True)
    lines = [line.strip("= ") for line in output.splitlines() if line.strip()]
    last = lines[-1] if lines else "it said nothing"
    if status == 0:
        return {"ok": True, "worst": last}
    found = re.findall(r"^(?:FAILED|ERROR) (.+?)(?: - (.*))?$", output, flags=re.MULTILINE)
    failures = {"failures": [test for test, _ in found]} if found else {}
    if any(reason.startswith(WRONG) for _, reason in found):
        return {"ok": False, "worst": last, **failures}
    reasons = [reason for _, reason in found if reason]
    raised = re.findall(r"^E +(\S.*)$", output, flags=re.MULTILINE)  # while tests were collected
    return {"failed": f"pytest ended with status {status}: {[*reasons, *raised[::-1], last][0]}", **failures}
