"""Reads the folder of a run: what was asked, what happened, and what it looked like on the way."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxrlhf.config_text import Node, read
from jaxrlhf.report.numbers import usable
from jaxrlhf.report.rows import check_event, check_histogram, check_metrics, check_sample, read_rows
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
        curves: name of a metric -> its points; none of a run that stopped before its first line.
        last_step: the last step of metrics.jsonl, 0 without one.
        events: lines of events.jsonl.
        histograms: lines of histograms.jsonl.
        samples: lines of samples.jsonl.
        checkpoint: the last step of checkpoints/, or None.
        exported: whether `export/` is there, which is written at the end.
        written: when metrics.jsonl was last written, seconds since 1970; None without a line in it.
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
    checkpoint: int | None
    exported: bool
    written: float | None
    problems: list[str]

    def curve(self, name: str) -> Curve:
        """The points of a metric; none if the run does not have it."""
        return self.curves.get(name, ())

    def setting(self, key: str) -> Any:
        """The value of a dotted key of the config; None if it is not there."""
        value: Any = self.config
        for name in key.split("."):
            value = value.get(name) if isinstance(value, dict) else None
        return value


class Found(NamedTuple):
    """The folder of a run, and whether it was named itself, rather than the folder that it lies in."""

    folder: Path
    named: bool


class Runs(NamedTuple):
    """The runs of a page, and the others of their folders: each with its place, and why it is left out."""

    records: list[RunRecord]
    left_out: list[str]


def find_runs(given: Sequence[str | Path]) -> list[Found]:
    """Finds the folders of the runs that are meant.

    Args:
        given: folders of runs, or folders whose subfolders are runs; those are taken in the order of their names.

    Raises:
        ValueError: if one is neither, or a run is meant twice.
    """
    found = [run for path in given for run in _runs_of(Path(path))]
    places = [run.folder.resolve() for run in found]
    twice = [run.folder for number, run in enumerate(found) if places[number] in places[:number]]
    if twice:
        raise ValueError(f"{twice[0]} is named twice; name each run once")
    return found


def read_runs(found: Sequence[Found]) -> Runs:
    """Reads runs, and gives each the shortest name that tells it from the others.

    A run of a folder of runs that cannot be read, or has no line of metrics yet, is left out.

    Args:
        found: all different, as `find_runs` returns them.

    Raises:
        ValueError: if a run that was named itself cannot be read, or none is left; names the files.
    """
    records, left_out = [], []
    for folder, named in found:
        try:
            record = _read(folder)
            if not named:
                _refuse_without_metrics(record)
            records.append(record)
        except (ValueError, OSError) as error:
            if named:
                raise
            left_out.append(str(error))
    if not records:
        raise ValueError("; ".join(["no run can be shown", *left_out]))
    names = _names([record.folder for record in records])
    named_records = [dataclasses.replace(record, name=name) for record, name in zip(records, names, strict=True)]
    return Runs(named_records, left_out)


def _runs_of(path: Path) -> list[Found]:
    if path.is_file():
        raise ValueError(f"{path} is a file; expected {_EXPECTED}")
    if not path.is_dir():
        raise ValueError(f"{path}: there is no such folder; expected {_EXPECTED}")
    if (path / "config.yaml").is_file():
        return [Found(path, named=True)]
    runs = sorted(file.parent for file in path.glob("*/config.yaml"))
    if not runs:
        raise ValueError(f"{path} is not the folder of a run: it has no config.yaml; expected {_EXPECTED}")
    return [Found(run, named=False) for run in runs]


def _names(folders: Sequence[Path]) -> list[str]:
    parts = [folder.resolve().parts for folder in folders]
    sizes = range(1, max(map(len, parts)) + 1)
    tails = (["/".join(own[-size:]) for own in parts] for size in sizes)
    return next(names for names in tails if len(set(names)) == len(names))


def _read(folder: Path) -> RunRecord:
    """Reads a run, under the name of its folder.

    Raises:
        ValueError: if its config cannot be read, or it says nothing of what happened.
    """
    problems: list[str] = []
    config, metrics = _read_config(folder / "config.yaml"), folder / "metrics.jsonl"
    rows = list(read_rows(metrics, check_metrics, problems))
    record = RunRecord(
        folder=folder,
        name=folder.name,
        method=_method_of(folder / "config.yaml", config),
        config=config,
        curves=_curves(rows),
        last_step=max((row["step"] for row in rows), default=0),
        events=list(read_rows(folder / "events.jsonl", check_event, problems)),
        histograms=list(read_rows(folder / "histograms.jsonl", check_histogram, problems)),
        samples=list(read_rows(folder / "samples.jsonl", check_sample, problems)),
        checkpoint=_last_checkpoint(folder / "checkpoints"),
        exported=(folder / "export" / "config.json").is_file(),
        written=metrics.stat().st_mtime if rows else None,
        problems=problems,
    )
    if not record.events:
        _refuse_without_metrics(record)
    return record


def _refuse_without_metrics(run: RunRecord) -> None:
    """Refuses a run without a line of metrics.

    Raises:
        ValueError: says what its last event was, if there is one.
    """
    if run.written is not None:
        return
    metrics = run.folder / "metrics.jsonl"
    if run.problems:
        raise ValueError(f"{metrics}: found no line of metrics; {run.problems[0]}")
    why = run.events[-1].get("why") if run.events else None
    state = f"the run stopped: {why}" if why else f"the first follows log_every={run.setting('log_every')} steps"
    raise ValueError(f"{metrics}: found no line of metrics yet; {state}")


def _last_checkpoint(folder: Path) -> int | None:
    """The largest step in the folder of checkpoints; one that is being written has another name."""
    steps = [int(path.name) for path in folder.glob("*") if path.name.isdecimal() and path.is_dir()]
    return max(steps, default=None)


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


def _method_of(path: Path, config: Mapping[str, Any]) -> str:
    """The method whose keys are most like those of a config, which an older or a newer version may have written.

    Raises:
        ValueError: if more keys differ than are the same.
    """
    keys = {name: {field.name for field in dataclasses.fields(method.config)} for name, method in METHODS.items()}
    best = min(keys, key=lambda name: len(keys[name] ^ set(config)))
    if len(keys[best] ^ set(config)) > len(keys[best] & set(config)):
        shown = f"its keys are {', '.join(list(config)[:5])}" if config else "it is empty"
        raise ValueError(f"{path} is the config of no method: {shown}; expected the one that a trainer wrote")
    return best


def _curves(rows: Iterable[Mapping[str, Any]]) -> dict[str, Curve]:
    curves: dict[str, list[Point]] = {}
    for row in rows:
        for name, value in row.items():
            if name not in ("step", "nonfinite"):
                curves.setdefault(name, []).append(Point(row["step"], usable(value)))
    return {name: sorted(points, key=lambda point: point.step) for name, points in curves.items()}
