"""Our side: the library's own trainers, driven by the settings."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.parity.settings import Settings
from jaxrlhf.data.batches import BatchKind
from jaxrlhf.data.config import DataConfig
from jaxrlhf.data.indexing import build_index
from jaxrlhf.data.loader import Loader
from jaxrlhf.data.shapes import Kind
from jaxrlhf.trainers import dpo, kto, reward, sft
from jaxrlhf.trainers.config import DPOConfig, KTOConfig, OptimConfig, RewardConfig, SFTConfig

Curve = dict[str, list[float]]
"""Name of a metric -> its value at every step."""

KINDS: dict[str, tuple[Kind, BatchKind]] = {
    "sft": ("sft", "tokens"),
    "reward": ("preference", "scored_pairs"),
    "dpo": ("preference", "pairs"),
    "kto": ("unpaired", "unpaired"),
    "prompts": ("prompt", "prompts"),
}


def train(method: str, settings: Settings, model: Path, rows: list[dict[str, Any]], out: Path) -> Curve:
    """Trains by a method on rows and returns its metrics, step by step.

    Args:
        method: sft, reward, dpo or kto.
        settings: hyper-parameters.
        model: folder to start from.
        rows: the data.
        out: folder of the run; removed first.
    """
    shutil.rmtree(out, ignore_errors=True)
    common: dict[str, Any] = {
        "out": str(out),
        "model": str(model),
        "batch_size": settings.rows,
        "micro_batches": settings.parts,
        "steps": settings.steps,
        "seed": settings.seed,
        "log_every": 1,
        "save_every": 0,
        "optim": OptimConfig(
            learning_rate=settings.learning_rate,
            schedule=settings.schedule,  # type: ignore[reportArgumentType]  # one of the names that the config checks
            b1=settings.b1,
            b2=settings.b2,
            eps=settings.eps,
            weight_decay=settings.weight_decay,
            max_grad_norm=settings.max_grad_norm,
        ),
    }
    if method == "sft":
        sft.run(SFTConfig(**common), dataset=rows)
    elif method == "reward":
        reward.run(RewardConfig(**common, center_coef=settings.center_coef), dataset=rows)
    elif method == "dpo":
        dpo.run(DPOConfig(**common, beta=settings.beta), dataset=rows)
    else:
        weight = settings.desirable_weight
        kto.run(KTOConfig(**common, beta=settings.beta, desirable_weight=weight), dataset=rows)
    return read_curve(out)


def visited(method: str, rows: list[dict[str, Any]], tokenizer: Any, size: int, steps: int, seed: int) -> list[int]:
    """The numbers of the rows in the order in which our loader visits them: what TRL is given, without shuffling."""
    index_kind, kind = KINDS[method]
    index = build_index(index_kind, [rows], tokenizer, DataConfig())
    if index.units != len(rows):
        raise ValueError(f"{len(rows) - index.units} of {len(rows)} rows were left out; use rows that all fit")
    loader = Loader(index, kind, size, seed)
    return np.concatenate([loader.batch_examples(n) for n in range(steps)]).tolist()


def read_curve(run: Path) -> Curve:
    """The metrics of a run's folder, but times."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    names = [name for name in lines[0] if not name.startswith("time/") and name != "step"]
    return {name: [line[name] for line in lines] for name in names}
