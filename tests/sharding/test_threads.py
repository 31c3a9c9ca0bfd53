import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaxrlhf.sharding.threads import spare_threads

FLAG = "--xla_force_host_platform_device_count"


@pytest.mark.parametrize(
    ("cores", "devices", "flags", "alone", "threads"),
    [
        (2, 8, "", True, "72"),
        (128, 8, "", True, "128"),
        (2, 1, "", False, "16"),
        (2, None, f"{FLAG}=8 {FLAG}=3", True, "32"),  # the last flag wins
        (2, 1, "", True, None),
        (2, None, "", True, None),  # a device by itself waits for nobody
    ],
)
def test_a_device_has_threads_to_wait_in(monkeypatch: pytest.MonkeyPatch, cores, devices, flags, alone, threads):
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    environ = {"XLA_FLAGS": flags}
    spare_threads(environ, devices, alone=alone)
    assert environ.get("PJRT_NPROC") == threads


@pytest.mark.parametrize("name", ["PJRT_NPROC", "NPROC"])
def test_a_number_that_is_set_is_left_alone(name: str):
    environ = {name: "3"}
    spare_threads(environ, 8)
    assert environ == {name: "3"}


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts threads as Linux lists them")
def test_a_mesh_of_a_divided_processor_has_them():
    program = (
        "import os; from jaxrlhf.sharding.config import MeshConfig; from jaxrlhf.sharding.mesh import open_mesh;"
        "open_mesh(MeshConfig(cpu_devices=3)); print(os.environ['PJRT_NPROC'], len(os.listdir('/proc/self/task')))"
    )
    environ = {name: value for name, value in os.environ.items() if name not in ("PJRT_NPROC", "XLA_FLAGS")}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environ)
    asked, running = map(int, done.stdout.split())
    assert asked >= 32 and running >= asked
