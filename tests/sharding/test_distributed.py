import os
import socket
import subprocess
import sys

import pytest

from jaxrlhf.sharding.distributed import _in_cluster, _launched, initialize, is_main

PROGRAM = """
import numpy as np
from jaxrlhf.sharding.distributed import initialize, is_main
initialize(); initialize()
import jax
from jaxrlhf.sharding.mesh import make_mesh
from jaxrlhf.sharding.place import place_batch, place_replicated, process_rows, to_host
assert jax.process_count() == 2 and is_main() == (jax.process_index() == 0)
batch = np.arange(24).reshape(8, 3)
for sizes in [(4, 1, 1), (1, 2, 2), (1, 1, 4)]:  # the last: both processes hold the same rows
    mesh = make_mesh(*sizes)
    rows = process_rows(mesh, 8)
    placed = place_batch({"x": batch[rows]}, mesh)
    assert placed["x"].shape == (8, 3), placed["x"].shape
    assert rows == (slice(0, 8) if sizes[2] == 4 else slice(4 * jax.process_index(), 4 * jax.process_index() + 4))
    np.testing.assert_array_equal(to_host(placed)["x"], batch)
    np.testing.assert_array_equal(to_host(place_replicated(batch, mesh)), batch)
    assert int(jax.jit(lambda x: x.sum())(placed["x"])) == 276
"""


def test_two_processes_share_a_batch():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    shared = {"JAXRLHF_COORDINATOR": f"localhost:{port}", "JAXRLHF_NUM_PROCESSES": "2"}
    shared |= {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            env=os.environ | shared | {"JAXRLHF_PROCESS_ID": str(number)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(errors)


def test_a_machine_by_itself_is_the_main_process(monkeypatch):
    for name in ("JAXRLHF_COORDINATOR", "JAXRLHF_NUM_PROCESSES", "JAXRLHF_PROCESS_ID"):
        monkeypatch.delenv(name, raising=False)
    initialize()
    assert is_main()


def test_a_launcher_sets_all_variables_or_none():
    assert _launched({}) is None
    with pytest.raises(ValueError, match="JAXRLHF_COORDINATOR are set but JAXRLHF_NUM_PROCESSES, JAXRLHF_PROCESS_ID"):
        _launched({"JAXRLHF_COORDINATOR": "a:1"})


def test_a_process_number_lies_below_the_count():
    with pytest.raises(ValueError, match="JAXRLHF_NUM_PROCESSES='2' and JAXRLHF_PROCESS_ID='2' must be"):
        _launched({"JAXRLHF_COORDINATOR": "a:1", "JAXRLHF_NUM_PROCESSES": "2", "JAXRLHF_PROCESS_ID": "2"})


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, False),
        ({"SLURM_STEP_NODELIST": "n1", "SLURM_NTASKS": "1"}, False),
        ({"SLURM_STEP_NODELIST": "n[1-2]", "SLURM_NTASKS": "2"}, True),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ({"TPU_WORKER_HOSTNAMES": "t-0,t-1"}, True),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, False),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"}, True),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, True),
        ({"JAXRLHF_CLUSTER": "gcetpu"}, True),
    ],
)
def test_a_cluster_is_seen_by_its_variables(environ, expected):
    assert _in_cluster(environ) is expected
