"""Folders of runs as trainers write them, made up."""

import json
import math
from pathlib import Path
from typing import Any

from jaxrlhf.config import dump
from jaxrlhf.report import RunRecord, find_runs, read_runs
from jaxrlhf.report.findings import findings_of
from jaxrlhf.trainers.config import SFTConfig
from jaxrlhf.trainers.ppo_config import PPOConfig


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_run(
    folder: Path,
    metrics: list[dict[str, Any]],
    *,
    config: Any = None,
    events: list[dict[str, Any]] | None = None,
    histograms: list[dict[str, Any]] | None = None,
    samples: list[dict[str, Any]] | None = None,
) -> Path:
    """A run with the given lines, of SFT unless a config says otherwise."""
    folder.mkdir(parents=True, exist_ok=True)
    given = SFTConfig(out=str(folder), model="m", dataset="d.jsonl") if config is None else config
    (folder / "config.yaml").write_text(dump(given), encoding="utf-8")
    write_lines(folder / "metrics.jsonl", metrics)
    for name, rows in (("events", events), ("histograms", histograms), ("samples", samples)):
        if rows is not None:
            write_lines(folder / f"{name}.jsonl", rows)
    return folder


def record(folder: Path) -> RunRecord:
    ((run,), _) = read_runs(find_runs([folder]))
    return run


def seen(folder: Path) -> list[str]:
    """What is found in a run."""
    return [finding.seen for finding in findings_of(record(folder))]


def write_changed(folder: Path, *, config: Any = None, **changes: Any) -> Path:
    """A run that goes well but for some metrics of training: a value, or a function of the step; `__` is a slash."""
    lines = ppo_lines(20)
    for line in lines:
        for name, value in changes.items():
            if "objective/kl" in line:  # of training
                line[name.replace("__", "/")] = value(line["step"]) if callable(value) else value
    return write_ppo(folder, metrics=lines, **({} if config is None else {"config": config}))


def ppo_lines(steps: int, every: int = 1) -> list[dict[str, Any]]:
    """Metrics of a PPO run that goes well."""
    lines: list[dict[str, Any]] = []
    for step in range(0, steps + 1, every):
        part = step / steps
        wave = 0.1 * math.sin(step)
        if step % max(1, steps // 4) == 0:
            lines.append(
                {
                    "step": step,
                    "eval/objective/scores": 1.0 + 2 * math.sqrt(part),
                    "eval/objective/kl": 9 * part,
                    "eval/completions/mean_length": 20.0,
                }
            )
        if step:
            lines.append(
                {
                    "step": step,
                    "objective/scores": 1.0 + 2 * math.sqrt(part) + wave,
                    "objective/kl": 9 * part + wave * part,
                    "completions/mean_length": 20 + 2 * wave,
                    "completions/clipped_ratio": 0.05,
                    "policy/entropy_avg": 1.5 - part,
                    "policy/clipfrac_avg": 0.1,
                    "loss/policy_avg": -0.01 + wave / 100,
                    "loss/value_avg": 0.5 * math.exp(-3 * part),
                    "grad_norm": 0.5 + wave,
                    "skipped": 0.0,
                    "critic/skipped": 0.0,
                    "learning_rate": 3e-6,
                    "num_tokens": 1000 * step,
                    "time/generate_s": 1.0 * every,
                    "time/score_s": 0.5 * every,
                    "time/train_s": 2.0 * every,
                    "time/generate_tokens_per_s": 500.0,
                    "time/iteration_s": 4.0 * every,
                }
            )
    return lines


def histogram(step: int, centre: float, *, spread: float = 1.0, unscored: int = 0) -> dict[str, Any]:
    """A line of histograms.jsonl: 20 bins, most answers in the middle."""
    edges = [centre + spread * (number - 10) / 10 for number in range(21)]
    counts = [10 - abs(number - 10) + (number == 0) for number in range(20)]
    return {"step": step, "scores": {"edges": edges, "counts": counts, "unscored": unscored}}


def sample(step: int, prompt: str, completion: str, score: float | None = 1.0, **more: Any) -> dict[str, Any]:
    """A line of samples.jsonl."""
    return {
        "step": step,
        "split": "train",
        "pick": "first",
        "prompt": prompt,
        "completion": completion,
        "terminated": True,
        "score": score,
        "scores": {"helpful": score},
    } | more


def write_ppo(folder: Path, steps: int = 20, every: int = 1, **changes: Any) -> Path:
    """A whole PPO run: resumed once, evaluated, with histograms and samples."""
    evaluated = sorted({step for step in range(0, steps + 1, max(1, steps // 4))})
    files = {
        "config": PPOConfig(out=str(folder), model="m", dataset="d.jsonl", rewards=("r.py:helpful",), steps=steps),
        "events": [
            started("start", 0),
            {"event": "stopped", "step": steps // 2 + 1, "time": "2026-01-01T00:01:00+00:00", "why": "interrupted"},
            started("resume", steps // 2),
            {"event": "finished", "step": steps, "time": "2026-01-01T00:05:00+00:00"},
        ],
        "histograms": [histogram(step, 1 + 2 * step / steps) for step in range(every, steps + 1, every)],
        "samples": [
            sample(step, f"Prompt {number}?", f"Answer {number} of step {step}.", step / 10 + number, split="eval")
            for step in evaluated
            for number in range(8)
        ]
        + [
            sample(steps, "Which?", f"The {pick} answer.", score, pick=pick, terminated=pick == "best")
            for pick, score in (("first", 1.5), ("best", 3.25), ("worst", -2.5))
        ],
    }
    return write_run(folder, changes.pop("metrics", ppo_lines(steps, every)), **(files | changes))


def started(event: str, step: int, *arguments: str) -> dict[str, Any]:
    """A line of events.jsonl with what the first line of each attempt carries."""
    return {
        "event": event,
        "step": step,
        "time": "2026-01-01T00:00:00+00:00",
        "command": ["jaxrlhf", "ppo", *(arguments or ("out=runs/my ppo", "seed=1"))],
        "versions": {"python": "3.11.1", "jaxrlhf": "0.1.0", "jax": "0.10.2"},
        "devices": "8 x cpu",
        "processes": 1,
    }
