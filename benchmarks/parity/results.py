"""benchmarks/results/parity.json: every curve of both sides, and what the comparison is."""

from __future__ import annotations

import importlib.metadata
import json
import math
import statistics
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "results" / "parity.json"

COMPARED = {
    "sft": ("loss", "grad_norm", "entropy", "mean_token_accuracy", "learning_rate"),
    "reward": ("loss", "grad_norm", "accuracy", "margin", "mean_reward"),
    "dpo": ("loss", "grad_norm", "rewards/margins", "rewards/accuracies", "logps/chosen", "logps/rejected"),
    "kto": ("loss", "grad_norm", "kl", "rewards/margins", "logps/chosen", "logps/rejected"),
    "grpo": ("reward", "grad_norm", "kl", "entropy", "completions/mean_length"),
    "ppo": ("objective/scores", "objective/kl", "objective/entropy", "loss/policy_avg", "loss/value_avg"),
}
"""Method -> the metrics that mean the same on both sides; the others are in docs/parity.md."""

LAST = 10
"""Steps at the end of a run that the comparison of seeds averages over."""


def load() -> dict[str, Any]:
    """The results so far."""
    return json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}


def add(kind: str, name: str, entry: dict[str, Any]) -> None:
    """Adds a comparison, in place of an earlier one of that name, and prints how far apart the two sides are."""
    method = name.replace(",", " ").split()[0]
    curves = {side: {metric: entry[side][metric] for metric in COMPARED[method]} for side in ("ours", "theirs")}
    results = load()
    results.setdefault(kind, {})[name] = {"settings": entry["settings"], **curves}
    _save(results)
    versions({name: importlib.metadata.version(name) for name in ("jax", "torch", "transformers", "trl")})
    for metric in COMPARED[method]:
        gap = difference(curves["ours"][metric], curves["theirs"][metric])
        print(f"{kind}: {name}: {metric}: {gap:.1e}", flush=True)


def versions(found: dict[str, str]) -> None:
    """Keeps the versions of packages."""
    results = load()
    results.setdefault("versions", {}).update(found)
    _save(results)


def difference(ours: list[float], theirs: list[float]) -> float:
    """The largest difference of two curves, relative to the largest value of theirs.

    Relative to each value a curve that crosses zero would differ without bound.
    """
    largest = max(abs(value) for value in theirs)
    return max(abs(x - y) for x, y in zip(ours, theirs, strict=True)) / (largest if largest else 1.0)


def compare_seeds(ours: list[list[float]], theirs: list[list[float]]) -> dict[str, float]:
    """Whether two sets of runs end alike: the means over seeds of the mean of the last steps, and their difference.

    Args:
        ours: a curve for each seed.
        theirs: likewise.

    Returns:
        `ours`, `theirs`, `difference`, its standard error `error`, and their quotient `errors`: within 2 is noise.
    """
    ends = [[statistics.mean(curve[-LAST:]) for curve in side] for side in (ours, theirs)]
    means = [statistics.mean(side) for side in ends]
    error = math.sqrt(sum(statistics.variance(side) / len(side) for side in ends))
    gap = means[0] - means[1]
    return {"ours": means[0], "theirs": means[1], "difference": gap, "error": error, "errors": gap / error}


def _save(results: dict[str, Any]) -> None:
    def short(value: Any) -> Any:
        if isinstance(value, float):
            return float(f"{value:.8g}")  # all that a float32 has
        if isinstance(value, dict):
            return {key: short(item) for key, item in value.items()}
        return [short(item) for item in value] if isinstance(value, list) else value

    lines = json.dumps(short(results), indent=1)
    RESULTS.write_text(_curves_on_one_line(lines) + "\n", encoding="utf-8")


def _curves_on_one_line(text: str) -> str:
    """Joins the lines of lists, which hold nothing but numbers."""
    parts = text.split("[")
    return "[".join([parts[0], *(_joined(part) for part in parts[1:])])


def _joined(part: str) -> str:
    inside, _, after = part.partition("]")
    return " ".join(inside.split()) + "]" + after
