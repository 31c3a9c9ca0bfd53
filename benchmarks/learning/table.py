"""The findings of all seeds as tables in Markdown."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from benchmarks.learning.findings import BEST, GRAM, ROWS, Findings
from benchmarks.learning.rows import EARLY, NO_KL, SLOW_GRPO

MOST_KL = 15.0
"""Nats that PPO and GRPO may be away from SFT."""

KL_EDGES = (-1.0, 0.0, 6.0, 9.0, 12.0, 16.0, math.inf)
"""Checkpoints of the run without a KL penalty are told apart by their KL, the first edge excluded; SFT itself has 0."""


def markdown(found: Findings) -> str:
    """The tables of what `findings.collect` returns, each below its heading."""
    seeds = found["seeds"]
    parts = {
        f"Mean over {len(seeds)} seeds ± its standard error": _means(seeds),
        "Goals": _goals(seeds),
        "Seed by seed, win rates with their 95 % intervals over prompts": _by_seed(seeds),
        "The reward model on pairs of answers, along the run without a KL penalty": _accuracy(seeds),
        f"The {GRAM}-grams that rose most in the run without a KL penalty": _grams(seeds),
        "PPO's learning rate and kind of update": _sweep(found["sweep"]),
    }
    title = [
        "# What every method learns: all rows",
        "",
        f"`python -m benchmarks.learning`, jax {found['jax']} on {found['backend']}. `docs/learning.md` says more.",
    ]
    sections = [title, *([f"## {heading}", "", *lines] for heading, lines in parts.items())]
    return "\n\n".join("\n".join(section) for section in sections) + "\n"


def _table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [heading, ["---"] * len(heading), *rows]
    return [f"| {' | '.join(cells)} |" for cells in lines]


def _mean(values: Sequence[float], digits: int) -> str:
    """The mean over seeds and its standard error, if there are several."""
    error = f" ± {np.std(values, ddof=1) / math.sqrt(len(values)):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{error}"


def _means(seeds: Findings) -> list[str]:
    def cells(name: str) -> Sequence[str]:
        rows = [seed["rows"][name] for seed in seeds.values()]

        def mean(digits: int, number: Callable[[dict[str, Any]], float | None]) -> str:
            values = [value for value in map(number, rows) if value is not None]
            return _mean(values, digits) if values else ""

        return [
            name,
            mean(2, lambda row: row["gold"]),
            mean(2, lambda row: row["reward"]),
            "" if name == "SFT" else mean(3, lambda row: row["wins"]["value"]),
            f"<= {rows[0]['kl']:.2f}" if name.startswith("best of") else mean(2, lambda row: row["kl"]),
            mean(1, lambda row: row["length"]),
            mean(2, lambda row: row["perplexity"]),
            mean(0, lambda row: row.get("cpu_seconds")),
        ]

    heading = ["policy", "gold", "reward model", "win rate", "KL, nats", "length", "perplexity", "CPU seconds"]
    return _table(heading, map(cells, ROWS))


def _goals(seeds: Findings) -> list[str]:
    """The numbers that each goal is about, seed by seed, and in how many it is met."""

    def above_best(name: str) -> Callable[[Findings], tuple[bool, str]]:
        def check(rows: Findings) -> tuple[bool, str]:
            more, kl = rows[name]["gold"] - rows[BEST]["gold"], rows[name]["kl"]
            return more > 0 and kl <= MOST_KL, f"{more:+.2f}, {kl:.1f}"

        return check

    def above_half(name: str) -> Callable[[Findings], tuple[bool, str]]:
        return lambda rows: (rows[name]["wins"]["low"] > 0.5, f"{rows[name]['wins']['low']:.3f}")

    def hacked(rows: Findings) -> tuple[bool, str]:
        gold, reward = (rows[NO_KL][name] - rows[EARLY][name] for name in ("gold", "reward"))
        return gold < 0 < reward, f"{gold:+.2f}, {reward:+.2f}"

    goals = {
        **{f"{name}: gold above {BEST}, at KL <= {MOST_KL:g}": above_best(name) for name in ("PPO", "GRPO", SLOW_GRPO)},
        **{f"{name}: win rate against SFT, lower end above 0.5": above_half(name) for name in ("DPO", "KTO")},
        "no KL penalty: gold falls and reward model rises after the steps of PPO": hacked,
    }

    def cells(goal: str) -> Sequence[str]:
        checks = [goals[goal](seed["rows"]) for seed in seeds.values()]
        return [goal, *(numbers for _, numbers in checks), f"{sum(met for met, _ in checks)} of {len(checks)}"]

    return _table(["goal", *(f"seed {seed}" for seed in seeds), "met in"], map(cells, goals))


def _by_seed(seeds: Findings) -> list[str]:
    def cells(seed: str, name: str, row: dict[str, Any]) -> Sequence[str]:
        wins = row["wins"]
        return [
            seed,
            name,
            f"{row['gold']:.2f}",
            f"{row['reward']:.2f}",
            "" if name == "SFT" else f"{wins['value']:.3f} [{wins['low']:.3f}, {wins['high']:.3f}]",
            f"{'<= ' if name.startswith('best of') else ''}{row['kl']:.2f}",
            f"{row['length']:.1f}",
            "" if row["perplexity"] is None else f"{row['perplexity']:.2f}",
            f"{row['cpu_seconds']:.0f}" if "cpu_seconds" in row else "",
        ]

    heading = ["seed", "policy", "gold", "reward model", "win rate", "KL, nats", "length", "perplexity", "CPU seconds"]
    return _table(
        heading, [cells(seed, name, row) for seed, held in seeds.items() for name, row in held["rows"].items()]
    )


def _accuracy(seeds: Findings) -> list[str]:
    """What the reward model is right about, by the KL of the checkpoint whose answers it is asked about."""

    def cells(low: float, high: float, parts: Sequence[list[dict[str, Any]]]) -> Sequence[str]:
        inside = [point for points in parts for point in points]
        means = [f"{np.mean([point[name] for point in inside]):.2f}" for name in ("gold", "reward")]
        pairs = sum(point["accuracy"]["count"] for point in inside)
        kl = "0" if high == 0 else f"over {low:g}" if math.isinf(high) else f"{low:g} to {high:g}"
        return [kl, str(len(parts)), str(len(inside)), *means, str(pairs), _mean([_pooled(part) for part in parts], 3)]

    heading = ["KL, nats", "seeds", "checkpoints", "gold", "reward model", "pairs", "ordered as by gold"]
    edges = zip(KL_EDGES, KL_EDGES[1:], strict=False)
    buckets = [(low, high, _between(seeds, low, high)) for low, high in edges]
    return _table(heading, [cells(*bucket) for bucket in buckets if bucket[2]])


def _between(seeds: Findings, low: float, high: float) -> list[list[dict[str, Any]]]:
    """The checkpoints with a KL in (low, high] of each seed that has such."""
    parts = [[point for point in held["checkpoints"] if low < point["kl"] <= high] for held in seeds.values()]
    return [points for points in parts if points]


def _pooled(points: Sequence[dict[str, Any]]) -> float:
    """The share of all pairs of some checkpoints."""
    counts = [point["accuracy"]["count"] for point in points]
    return float(np.average([point["accuracy"]["value"] for point in points], weights=counts))


def _grams(seeds: Findings, most: int = 3) -> list[str]:
    rows = [
        [seed, gram["words"], f"{gram['before']:.3f}", f"{gram['after']:.3f}"]
        for seed, held in seeds.items()
        for gram in held["risen"][:most]
    ]
    return _table(["seed", "words", "per answer of SFT", "per answer without KL penalty"], rows)


def _sweep(sweep: dict[str, list[dict[str, Any]]]) -> list[str]:
    rows = [
        [seed, run["kind"], f"{run['learning_rate']:g}", *(f"{run[key]:.2f}" for key in ("gold", "reward", "kl"))]
        for seed, runs in sweep.items()
        for run in runs
    ]
    return _table(["seed", "update", "learning rate", "gold", "reward model", "KL, nats"], rows)
