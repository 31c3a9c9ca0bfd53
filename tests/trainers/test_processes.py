"""Two real processes over loopback train what one process trains."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxrlhf.models.load import load_policy
from tests.trainers.small import events, histograms, metrics, samples, train

ROOT = Path(__file__).parents[2]
PROGRAM = (
    "import sys; from pathlib import Path; from jaxrlhf.sharding.distributed import initialize; initialize();"
    "from tests.trainers.small import stop_after, train;"
    "stop_after(sys.argv[3]); train(sys.argv[1], Path(sys.argv[2]))"
)


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("kto", "grpo")]


@pytest.mark.parametrize("method", ["sft", "ppo", *SLOW])
def test_two_processes_equal_one(method, tmp_path):
    flags = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=4")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": flags}
    launcher = [sys.executable, "scripts/launch/local.py", "--processes", "2", "--"]
    launches = (("2", 2), ("never", 4)) if method == "sft" else (("never", 4),)
    for stop, last in launches:  # the second launch goes on where the first one stopped
        command = [*launcher, sys.executable, "-c", PROGRAM, method, str(tmp_path / "two"), stop]
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400, check=False
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        assert [line["step"] for line in metrics(tmp_path / "two")][-1] == last

    train(method, tmp_path / "one")
    one, two = load_policy(tmp_path / "one" / "export").params, load_policy(tmp_path / "two" / "export").params
    for left, right in zip(_leaves(one), _leaves(two), strict=True):
        np.testing.assert_allclose(left, right, atol=2e-4)
    name = "rewards/mentions/mean" if method in ("ppo", "grpo") else "loss"
    assert [line[name] for line in metrics(tmp_path / "two") if name in line] == pytest.approx(
        [line[name] for line in metrics(tmp_path / "one") if name in line], rel=1e-4
    )
    one, two = ([_told(row) for row in samples(tmp_path / name) if row["step"]] for name in ("one", "two"))
    assert one[:8] == two[:8]  # of the first step, and of the first process
    one, two = ([row["scores"]["counts"] for row in histograms(tmp_path / name)] for name in ("one", "two"))
    assert one == two  # of the answers of all processes
    begun = [(line["event"], line["processes"]) for line in events(tmp_path / "two") if "processes" in line]
    assert begun == [("start", 2), ("resume", 2)][: len(launches)]


def _told(row):
    return row["prompt"], row["completion"], row["score"]


def _leaves(tree):
    import jax

    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]
