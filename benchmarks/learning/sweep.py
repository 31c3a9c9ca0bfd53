"""How much the learning rate matters to PPO, with and without its clipping and its several epochs."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

from benchmarks.learning import stages
from benchmarks.learning.rows import judged
from benchmarks.learning.stages import Ground
from jaxrlhf.demo import road
from jaxrlhf.demo.config import DemoConfig

log = logging.getLogger(__name__)

RATES = (1e-4, 3e-4, 1e-3, 3e-3)
"""Learning rates of the policy, over one and a half decades."""

UPDATES: dict[str, dict[str, Any]] = {
    "clipped": {},
    "unclipped": {"clip_eps": 1e6},
    "policy gradient": {"epochs": 1, "mini_batches": 1},
}
"""Kind of update -> what it changes of the demo's PPO.

At the first update of a rollout all ratios are 1, so one epoch of one mini-batch is the plain policy gradient, which
clipping does not touch.
"""


def run_sweep(config: DemoConfig) -> None:
    """Trains and judges every kind of update at every rate, unless its file is there."""
    kept = Path(config.out) / "sweep"
    kept.mkdir(parents=True, exist_ok=True)
    ground = stages.lay_ground(config, stages.pretrain_and_fine_tune(config))
    for kind in UPDATES:
        for rate in RATES:
            path = kept / f"{kind} {rate:g}.json"
            if not path.exists():
                log.info("seed %d: %s at %g", config.seed, kind, rate)
                found = _train(ground, kind, rate)
                path.write_text(json.dumps(found), encoding="utf-8")


def read_sweep(config: DemoConfig) -> list[dict[str, Any]]:
    """What was found, the kinds of updates in their order."""
    kept = Path(config.out) / "sweep"
    return [json.loads((kept / f"{kind} {rate:g}.json").read_text()) for kind in UPDATES for rate in RATES]


def _train(ground: Ground, kind: str, rate: float) -> dict[str, Any]:
    config = road.ppo_config(ground.config, ground.sft)
    changed = dataclasses.replace(
        config,
        out=f"{ground.config.out}/sweep/{kind} {rate:g}",
        optim=dataclasses.replace(config.optim, learning_rate=rate),
        ppo=dataclasses.replace(config.ppo, **UPDATES[kind]),
    )
    found = judged(kind, ground, stages.run_ppo(ground, changed))
    means = {name: float(getattr(found, name).mean()) for name in ("gold", "reward")}
    return {"kind": kind, "learning_rate": rate, **means, "kl": found.kl, "length": found.length}
