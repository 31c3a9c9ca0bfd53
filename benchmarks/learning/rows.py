"""The rows of the table: each is trained once, judged on the held-out prompts, and kept as a file of its own."""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.learning import stages
from benchmarks.learning.analyses import best_of_n_curve, over_optimisation
from benchmarks.learning.forgetting import perplexity
from benchmarks.learning.stages import Ground
from jaxrlhf.commands.sampled import Answered
from jaxrlhf.demo import road
from jaxrlhf.demo.config import DemoConfig
from jaxrlhf.demo.judging import best_of, judge, rewards
from jaxrlhf.demo.table import Result
from jaxrlhf.trainers.start import Start

log = logging.getLogger(__name__)

MOST = 16
"""Answers of SFT to each prompt that best-of-n chooses among."""

NO_KL = f"PPO, no KL penalty, {stages.LONGER} x the steps"

SLOW_GRPO = "GRPO, a third of the rate"

TRAINED: dict[str, Callable[[Ground], Start]] = {
    "rejection sampling": stages.train_rejection,
    "DPO": stages.train_dpo,
    "KTO": stages.train_kto,
    "PPO": stages.train_ppo,
    "PPO + PTX": stages.train_ppo_ptx,
    "GRPO": stages.train_grpo,
    SLOW_GRPO: stages.train_grpo_slowly,
    NO_KL: stages.train_ppo_free,
}
"""Row of the table -> how its policy is trained."""

EARLY = "PPO, no KL penalty"
"""The row of the run without a KL penalty after as many steps as PPO."""


class Spent(NamedTuple):
    """What a training stage took, compilation and evaluations along the way among it.

    Attributes:
        seconds: of wall time.
        cpu_seconds: of all threads.
    """

    seconds: float
    cpu_seconds: float


class Kept(NamedTuple):
    """What the file of a row holds.

    Attributes:
        result: of one answer to each held-out prompt.
        perplexity: of texts of pretraining; None where there is no policy of its own.
        spent: on training; None where nothing was trained for the row.
    """

    result: Result
    perplexity: float | None = None
    spent: Spent | None = None


def run_seed(config: DemoConfig) -> None:
    """Trains and judges what of a seed has no file yet."""
    kept = Path(config.out) / "results"
    kept.mkdir(parents=True, exist_ok=True)

    def keep(name: str, found: Callable[[], Any]) -> None:
        path = kept / f"{name}.json"
        if path.exists():
            return
        log.info("seed %d: %s", config.seed, name)
        text = json.dumps(found())
        path.write_text(text, encoding="utf-8")

    def keep_row(name: str, found: Callable[[], Kept]) -> None:
        keep(name, lambda: _plain(found()))

    base = road.pretrain(config).model
    sft, spent = timed(lambda: road.fine_tune(config, base).model)
    ground = stages.lay_ground(config, sft)
    keep_row("SFT", lambda: _examined("SFT", ground, sft, spent))
    several = functools.cache(lambda: _scored_answers(ground))
    for count in (4, MOST):
        keep_row(f"best of {count}", lambda count=count: Kept(best_of(count, *several())))
    for name, train in TRAINED.items():
        keep_row(name, lambda name=name, train=train: _trained(name, ground, train))
    early = config.sizes.ppo_steps
    keep_row(EARLY, lambda: _examined(EARLY, ground, stages.checkpoint(ground, stages.FREE, early)))
    keep("pretrained", lambda: {"perplexity": perplexity(config, base)})
    keep("best of n", lambda: best_of_n_curve(*several()))
    keep("over-optimisation", lambda: {"checkpoints": over_optimisation(ground)})


def timed(train: Callable[[], Start]) -> tuple[Start, Spent]:
    """Trains, and measures what it took."""
    seconds, cpu_seconds = time.monotonic(), time.process_time()
    policy = train()
    return policy, Spent(time.monotonic() - seconds, time.process_time() - cpu_seconds)


def judged(name: str, ground: Ground, policy: Start) -> Result:
    """The result of one answer to each held-out prompt, drawn as in the demo."""
    answered = road.sample(policy, ground.prompts, answers=1, seed=road.seed_of(ground.config, 6))
    return judge(name, policy, answered, scorer=ground.scorer, sft=ground.sft)


def read_row(config: DemoConfig, name: str) -> Kept:
    """Reads the file of a row back."""
    held = json.loads((Path(config.out) / "results" / f"{name}.json").read_text(encoding="utf-8"))
    arrays = {field: np.array(held["result"][field]) for field in ("gold", "reward")}
    spent = None if held["spent"] is None else Spent(**held["spent"])
    return Kept(Result(**{**held["result"], **arrays}), held["perplexity"], spent)


def _plain(kept: Kept) -> dict[str, Any]:
    arrays = {"gold": kept.result.gold.tolist(), "reward": np.round(kept.result.reward, 4).tolist()}
    result = {**dataclasses.asdict(kept.result), **arrays}
    spent = None if kept.spent is None else kept.spent._asdict()
    return {"result": result, "perplexity": kept.perplexity, "spent": spent}


def _trained(name: str, ground: Ground, train: Callable[[Ground], Start]) -> Kept:
    policy, spent = timed(lambda: train(ground))
    return _examined(name, ground, policy, spent)


def _examined(name: str, ground: Ground, policy: Start, spent: Spent | None = None) -> Kept:
    return Kept(judged(name, ground, policy), perplexity(ground.config, policy), spent)


def _scored_answers(ground: Ground) -> tuple[Answered, np.ndarray]:
    answered = road.sample(ground.sft, ground.prompts, answers=MOST, seed=road.seed_of(ground.config, 7))
    return answered, rewards(ground.scorer, answered)
