"""What all seeds found, read back from their files, and written as one."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jax

from benchmarks.learning.analyses import curve, risen
from benchmarks.learning.config import LearningConfig
from benchmarks.learning.rows import EARLY, MOST, NO_KL, TRAINED, read_row
from benchmarks.learning.stages import FREE
from benchmarks.learning.sweep import read_sweep
from jaxrlhf.demo.config import DemoConfig

Findings = dict[str, Any]
"""What `collect` returns: the version of jax and its backend, what each seed found, and the sweep."""

BEST = f"best of {MOST}"

ROWS = ("SFT", "best of 4", BEST, *(name for name in TRAINED if name != NO_KL), EARLY, NO_KL)
"""The rows of the table, in its order."""

CURVES = ("rejection", "ppo", "ppo-ptx", FREE, "grpo", "grpo-slow")
"""The runs that were looked at along the way."""

GRAM = 4
"""Words of the n-grams that are counted."""


def collect(config: LearningConfig) -> Findings:
    """Reads what every seed has found."""
    return {
        "jax": jax.__version__,
        "backend": jax.default_backend(),
        "seeds": {str(seed): _of_seed(config.demo(seed)) for seed in config.seeds},
        "sweep": {str(seed): read_sweep(config.demo(seed)) for seed in config.sweep_seeds},
    }


def as_json(found: Findings) -> str:
    """JSON of four digits after the point, with what holds nothing but values on one line."""
    text = json.dumps(_rounded(found), indent=1)
    return re.sub(r"\{[^\[\]{}]*\}|\[[^\[\]{}]*\]", lambda innermost: " ".join(innermost[0].split()), text) + "\n"


def _rounded(found: Any) -> Any:
    if isinstance(found, dict):
        return {key: _rounded(value) for key, value in found.items()}
    if isinstance(found, (list, tuple)):
        return [_rounded(value) for value in found]
    return round(found, 4) if isinstance(found, float) else found


def _of_seed(config: DemoConfig) -> Findings:
    sft, hacked = (read_row(config, name).result for name in ("SFT", NO_KL))
    return {
        "perplexity of the pretrained model": _kept(config, "pretrained")["perplexity"],
        "rows": {name: _of_row(config, name) for name in ROWS},
        "curves": {run: curve(Path(config.out) / run) for run in CURVES} | {"best of n": _kept(config, "best of n")},
        **_kept(config, "over-optimisation"),
        "risen": risen(sft.answers, hacked.answers, GRAM),
        "answers": {"SFT": sft.answers[:3], NO_KL: hacked.answers[:3]},
    }


def _of_row(config: DemoConfig, name: str) -> Findings:
    result, perplexity, spent = read_row(config, name)
    return {
        "gold": float(result.gold.mean()),
        "reward": float(result.reward.mean()),
        "wins": vars(result.wins_against(read_row(config, "SFT").result)),
        "kl": result.kl,
        "length": result.length,
        "perplexity": perplexity,
        **({} if spent is None else spent._asdict()),
    }


def _kept(config: DemoConfig, name: str) -> Findings:
    return json.loads((Path(config.out) / "results" / f"{name}.json").read_text(encoding="utf-8"))
