"""Two real processes over loopback train what one process trains."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxrlhf.models.load import load_policy
from tests.trainers.small import metrics, train

ROOT = Path(__file__).parents[2]
PROGRAM = (
    "import sys; from pathlib import Path; from jaxrlhf.sharding.distributed import initialize; initialize();"
    "from tests.trainers.small import train; train(sys.argv[1], Path(sys.argv[2]), steps=2)"
)


@pytest.mark.parametrize("method", ["sft", "ppo"])
def test_two_processes_equal_one(method, tmp_path):
    flags = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=4")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": flags}
    launcher = [sys.executable, "scripts/launch/local.py", "--processes", "2", "--"]
    command = [*launcher, sys.executable, "-c", PROGRAM, method, str(tmp_path / "two")]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]

    train(method, tmp_path / "one", steps=2)
    one, two = load_policy(tmp_path / "one" / "export").params, load_policy(tmp_path / "two" / "export").params
    for left, right in zip(_leaves(one), _leaves(two), strict=True):
        np.testing.assert_allclose(left, right, atol=2e-4)
    name = "loss" if method == "sft" else "rewards/mentions/mean"
    assert [line[name] for line in metrics(tmp_path / "two") if name in line] == pytest.approx(
        [line[name] for line in metrics(tmp_path / "one") if name in line], rel=1e-4
    )


def _leaves(tree):
    import jax

    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]
