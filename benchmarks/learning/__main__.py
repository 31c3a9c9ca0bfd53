"""`python -m benchmarks.learning key=value ...`; the keys are those of `config.py`."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import jax

from benchmarks.learning.config import LearningConfig
from benchmarks.learning.figure import draw
from benchmarks.learning.findings import as_json, collect
from benchmarks.learning.rows import run_seed
from benchmarks.learning.sweep import run_sweep
from benchmarks.learning.table import markdown
from jaxrlhf.config import load
from jaxrlhf.sharding.mesh import make_mesh


def main() -> None:
    """Trains and judges what is missing, then writes learning.json, learning.md and learning.svg."""
    logging.basicConfig(format="%(message)s")
    for name in ("jaxrlhf", "benchmarks"):
        logging.getLogger(name).setLevel(logging.INFO)
    config = load(LearningConfig, overrides=sys.argv[1:])
    with jax.set_mesh(make_mesh()):
        for seed in config.seeds:
            run_seed(config.demo(seed))
        for seed in config.sweep_seeds:
            run_sweep(config.demo(seed))
    found, out = collect(config), Path(config.out)
    (out / "learning.json").write_text(as_json(found), encoding="utf-8")
    (out / "learning.md").write_text(markdown(found), encoding="utf-8")
    draw(found, out / "learning.svg")
    print(markdown(found))


if __name__ == "__main__":
    main()
