"""Reads the folder of a run: what was asked, what happened, and what it looked like on the way."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxrlhf.config_text import Node, read
from jaxrlhf.report.numbers import usable
from jaxrlhf.report.series import Curve, Point
from jaxrlhf.trainers.config import DPOConfig, KTOConfig, RewardConfig, SFTConfig, TrainConfig
from jaxrlhf.trainers.grpo_config import GRPOConfig
from jaxrlhf.trainers.ppo_config import PPOConfig
from jaxrlhf.trainers.rejection_config import RejectionConfig


class Method(NamedTuple):
    """A method of training: its command, and the config of that."""

    command: str
    config: type[TrainConfig]


METHODS = {
    "SFT": Method("sft", SFTConfig),
    "Reward model": Method("reward", RewardConfig),
    "DPO": Method("dpo", DPOConfig),
    "KTO": Method("kto", KTOConfig),
    "PPO": Method("ppo", PPOConfig),
    "GRPO": Method("grpo", GRPOConfig),
    "Rejection sampling": Method("rejection", RejectionConfig),
}
"""Name of a method -> what it is, in the order in which people use them."""

_EXPECTED = "a folder that a trainer wrote (its `out`), with config.yaml and metrics.jsonl, or a folder of such folders"


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunRecord:
    """What a run has written down.

    Attributes:
        folder: of the run.
        name: of the run on the page.
        method: a key of `METHODS`.
        config: what is in config.yaml.
        curves: name of a metric -> its points.
        last_step: the last step of metrics.jsonl.
        events: lines of events.jsonl.
        histograms: lines of histograms.jsonl.
        samples: lines of samples.jsonl.
        exported: whether `export/` is there, which is written at the end.
        written: when metrics.jsonl was last written, seconds since 1970.
        problems: lines that could not be read, each with its place.
    """

    folder: Path
    name: str
    method: str
    config: dict[str, Any]
    curves: dict[str, Curve]
    last_step: int
    events: list[dict[str, Any]]
    histograms: list[dict[str, Any]]
    samples: list[dict[str, Any]]
    exported: bool
    written: float
    problems: list[str]

    def curve(self, name: str) -> Curve:
        """The points of a metric; none if the run does not have it."""
        return self.curves.get(name, ())


def find_runs(given: Sequence[str | Path]) -> list[Path]:
    """Names the folders of the runs that are meant.

    Args:
        given: folders of runs, or folders whose subfolders are runs; those are taken in the order of their names.

    Raises:
        ValueError: if one is neither, or a run is meant twice.
    """
    found = [folder for path in given for folder in _runs_of(Path(path))]
    places = [folder.resolve() for folder in found]
    twice = [folder for number, folder in enumerate(found) if places[number] in places[:number]]
    if twice:
        raise ValueError(f"{twice[0]} is named twice; name each run once")
    return found


def read_runs(folders: Sequence[Path]) -> list[RunRecord]:
    """Reads runs, and gives each the shortest name that tells it from the others.

    Args:
        folders: all different, as `find_runs` returns them.

    Raises:
        ValueError: if a config cannot be read, or nothing is in metrics.jsonl; names the file.
    """
    return [_read(folder, name) for folder, name in zip(folders, _names(folders), strict=True)]


def _runs_of(path: Path) -> list[Path]:
    if not path.is_dir():
        raise ValueError(f"{path}: there is no such folder; expected {_EXPECTED}")
    if (path / "config.yaml").is_file():
        return [path]
    runs = sorted(file.parent for file in path.glob("*/config.yaml"))
    if not runs:
        raise ValueError(f"{path} is not the folder of a run: it has no config.yaml; expected {_EXPECTED}")
    return runs


def _names(folders: Sequence[Path]) -> list[str]:
    parts = [folder.resolve().parts for folder in folders]
    sizes = range(1, max(map(len, parts)) + 1)
    tails = (["/".join(own[-size:]) for own in parts] for size in sizes)
    return next(names for names in tails if len(set(names)) == len(names))


def _read(folder: Path, name: str) -> RunRecord:
    config, problems = _read_config(folder / "config.yaml"), []
    metrics = folder / "metrics.jsonl"
    if not metrics.is_file():
        every = config.get("log_every", "log_every")
        raise ValueError(
            f"{metrics}: there is no such file; the run has not written its first line, after {every} steps"
        )
    rows = list(_rows(metrics, _check_metrics, problems))
    if not rows:
        raise ValueError(f"{metrics}: found no line of metrics; {problems[0] if problems else 'the file is empty'}")
    return RunRecord(
        folder=folder,
        name=name,
        method=_method_of(config),
        config=config,
        curves=_curves(rows),
        last_step=max(row["step"] for row in rows),
        events=list(_rows(folder / "events.jsonl", _check_event, problems)),
        histograms=list(_rows(folder / "histograms.jsonl", _check_histogram, problems)),
        samples=list(_rows(folder / "samples.jsonl", _check_sample, problems)),
        exported=(folder / "export" / "config.json").is_file(),
        written=metrics.stat().st_mtime,
        problems=problems,
    )


def _read_config(path: Path) -> dict[str, Any]:
    problems: list[str] = []
    config = _plain(read(path, problems))
    if problems:
        raise ValueError("; ".join(problems))
    return config


def _plain(node: Node) -> Any:
    """What a node stands for. A run wrote it, so a text that looks like a number is one."""
    if isinstance(node.value, dict):
        return {key: _plain(child) for key, child in node.value.items()}
    if isinstance(node.value, list):
        return [_plain(child) for child in node.value]
    convert: Mapping[str, Callable[[str], Any]] = {
        "null": lambda _: None,
        "bool": lambda text: text.lower() == "true",
        "int": int,
        "float": float,
    }
    return convert.get(node.kind, str)(node.value)


def _method_of(config: Mapping[str, Any]) -> str:
    """The method whose keys are most like those of a config, which an older or a newer version may have written."""

    def differs(name: str) -> int:
        return len({field.name for field in dataclasses.fields(METHODS[name].config)} ^ set(config))

    return min(METHODS, key=differs)


def _curves(rows: Iterable[Mapping[str, Any]]) -> dict[str, Curve]:
    curves: dict[str, list[Point]] = {}
    for row in rows:
        for name, value in row.items():
            if name not in ("step", "nonfinite"):
                curves.setdefault(name, []).append(Point(row["step"], usable(value)))
    return {name: sorted(points, key=lambda point: point.step) for name, points in curves.items()}


def _rows(path: Path, check: Callable[[Any], str], problems: list[str]) -> Iterator[dict[str, Any]]:
    """Yields the lines of a file that pass the check; `problems` takes the others."""
    lines = path.read_bytes().split(b"\n") if path.is_file() else []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError):
            cut = ": cut short, as a killed run leaves its last" if number == len(lines) else ""
            problems.append(f"{path}:{number}: not a line of JSON{cut}")
            continue
        complaint = check(row)
        if complaint:
            problems.append(f"{path}:{number}: {complaint}")
        else:
            yield row


def _check_step(row: Any) -> str:
    if not isinstance(row, dict):
        return "expected a JSON object"
    step = row.get("step")
    fine = isinstance(step, int) and not isinstance(step, bool) and 0 <= step < 2**53
    return "" if fine else f"step is {_shown(step)}, expected a number of steps"


def _check_metrics(row: Any) -> str:
    if complaint := _check_step(row):
        return complaint
    bad = [name for name, value in row.items() if name != "nonfinite" and not _is_metric(value)]
    return f"{bad[0]!r} is {_shown(row[bad[0]])}, expected a number or null" if bad else ""


def _check_event(row: Any) -> str:
    return _check_step(row) or ("" if isinstance(row.get("event"), str) else "event is missing")


def _check_histogram(row: Any) -> str:
    if complaint := _check_step(row):
        return complaint
    scores = row.get("scores")
    if not isinstance(scores, dict):
        return "scores are missing"
    edges, counts = scores.get("edges"), scores.get("counts")
    if not isinstance(edges, list) or not isinstance(counts, list) or not len(edges) == len(counts) + 1 > 1:
        return "scores are not counts between edges"
    numbers = [usable(value) for value in (*edges, *counts, scores.get("unscored", 0))]
    if None in numbers or edges != sorted(edges) or min(counts) < 0:
        return "scores have edges that do not rise, or what is no count"
    return ""


def _check_sample(row: Any) -> str:
    return _check_step(row) or ("" if {"prompt", "completion"} <= set(row) else "prompt or completion is missing")


def _is_metric(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
