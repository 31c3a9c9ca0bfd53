"""Where metrics go besides `metrics.jsonl`: TensorBoard and Weights & Biases, each an optional package."""

from __future__ import annotations

import importlib.util
import logging
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

_log = logging.getLogger(__name__)

PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb"}
"""Tracker -> the package that it needs, which the extra of the tracker's name installs."""


class Tracker(Protocol):
    """Takes what goes into `metrics.jsonl`."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Takes the metrics of a step; the same step may come again with others."""
        ...

    def close(self, *, failed: bool) -> None:
        """Hands over what is left; `failed` says that an error ended the run."""
        ...


def check_installed(names: Iterable[str]) -> None:
    """Checks that the packages of these trackers are there, before a run costs anything.

    Raises:
        ValueError: if one is missing.
    """
    for name in names:
        if importlib.util.find_spec(PACKAGES[name]) is None:
            raise ValueError(
                f"trackers: {name} needs the package {PACKAGES[name]}; pip install 'jaxrlhf[{name}]', or leave it out"
            )


def open_trackers(names: Iterable[str], folder: Path, step: int, config: Mapping[str, Any]) -> list[Tracker]:
    """Opens the trackers of a run.

    Args:
        names: of `PACKAGES`.
        folder: of the run, which holds their files.
        step: the step that the run goes on from, -1 at its start; what they know of later steps is superseded.
        config: of the run, for trackers that show it.
    """
    return [
        TensorBoard(folder / "tensorboard", step) if name == "tensorboard" else WandB(folder, step, config)
        for name in names
    ]


class TensorBoard:
    """Event files for TensorBoard, each event on disk at once: the package's own writer has a thread to be killed with.

    Args:
        folder: where they go.
        step: the step that the run goes on from, -1 at its start.
    """

    def __init__(self, folder: Path, step: int):
        """Begins a new file, whose first events hide those of earlier files after `step`."""
        import tensorboardX

        folder.mkdir(exist_ok=True)
        self._file = tensorboardX.RecordWriter(str(folder / f"events.out.tfevents.{time.time_ns()}"))
        self._append(file_version="brain.Event:2")
        self._append(step=step + 1, session_log={"status": "START"})

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Adds a point to the curve of each metric."""
        points = [{"tag": name, "simple_value": value} for name, value in values.items()]
        self._append(step=step, summary={"value": points})

    def close(self, *, failed: bool) -> None:
        """Closes the file; TensorBoard does not show how a run ended."""
        del failed
        self._file.close()

    def _append(self, **fields: Any) -> None:
        from tensorboardX.proto import event_pb2

        event = event_pb2.Event(wall_time=time.time(), **fields)  # pyright: ignore[reportAttributeAccessIssue]  (made at import)
        self._file.write(event.SerializeToString())
        self._file.flush()


class WandB:
    """A run of Weights & Biases, in the project that `WANDB_PROJECT` names, else `jaxrlhf`.

    Its id is kept in `wandb/run-id.txt` of the run's folder, and a run that is resumed goes on under it. Steps that W&B
    has from before the interruption are not sent again, since it takes none twice.

    Args:
        folder: of the run.
        step: the step that the run goes on from, -1 at its start.
        config: of the run.
    """

    def __init__(self, folder: Path, step: int, config: Mapping[str, Any]):
        """Begins or resumes the run; `WANDB_MODE` says whether online."""
        import wandb  # pyright: ignore[reportMissingImports]  (optional, and too large to develop with)

        kept = folder / "wandb" / "run-id.txt"
        known = kept.read_text(encoding="utf-8").strip() if step >= 0 and kept.exists() else None
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "jaxrlhf"),
            name=folder.resolve().name,
            id=known,
            resume=None if known is None else "allow",
            dir=str(folder),
            config=dict(config),
        )
        kept.parent.mkdir(exist_ok=True)  # a mode in which nothing is recorded leaves no folder
        kept.write_text(f"{self._run.id}\n", encoding="utf-8")
        self._first = self._run.starting_step
        if self._first > step + 1:
            _log.info("W&B has the steps up to %d of run %s, which are not sent again", self._first - 1, self._run.id)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Sends metrics."""
        if step >= self._first:
            self._run.log(dict(values), step=step)

    def close(self, *, failed: bool) -> None:
        """Ends the run there, and says whether it failed."""
        self._run.finish(exit_code=int(failed))
