"""Checkpoints of a run: Orbax writes the arrays, and this makes a step all or nothing, verified, and few in number.

    folder/
      100/                 a complete step
        arrays/            the leaves of the tree, by Orbax
        record.json        what is no array: seed, data position, config, versions, digests
        manifest.json      every file above with size and checksum; also shapes, dtypes and metrics
      200.partial/         a step that is being written; the rename to `200` completes it

A step is listed from the rename on. Only `save` changes the folder, so that others may read the one of a living run.
"""

from __future__ import annotations

import concurrent.futures
import json
import logging
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import orbax.checkpoint.experimental.v1 as ocp
from jax.experimental import multihost_utils

from jaxrlhf.checkpoint import leaves, manifest

_log = logging.getLogger(__name__)

_NOTHING, _ALL_BAD = -1, -2  # what process 0 says in place of a step


class Checkpoints:
    """The checkpoints in a folder. In a run of several processes each of them calls the same methods in the same order.

    Args:
        folder: created by the first save; on a file system that all processes see.
        keep: number of the newest steps to keep, positive.
        best_metric: the step with the best value of this metric is kept besides; None keeps no other.
        best_mode: whether the largest or the smallest value is the best.
    """

    def __init__(
        self,
        folder: str | Path,
        keep: int = 3,
        best_metric: str | None = None,
        best_mode: Literal["max", "min"] = "max",
    ):
        """Looks at nothing yet."""
        if keep < 1:
            raise ValueError(f"keep={keep} must be positive")
        self._folder = Path(folder).absolute()
        self._keep = keep
        self._best_metric = best_metric
        self._best_mode = best_mode
        self._executor = concurrent.futures.ThreadPoolExecutor(max_workers=1)  # joined when the interpreter exits
        self._pending: tuple[int, concurrent.futures.Future[None]] | None = None
        self._good: set[int] = set()  # steps whose files this object has compared with their manifests
        self._bad: set[int] = set()
        self._ignored: set[str] = set()  # foreign names that the log has mentioned

    def save(self, step: int, tree: Any, record: Mapping[str, Any], metrics: Mapping[str, float] | None = None) -> None:
        """Starts to write a step; arrays are copied to the host before this returns, and may be donated after.

        Args:
            step: not negative, and not there yet.
            tree: pytree of `jax.Array` or numpy arrays, none of them empty or a typed PRNG key.
            record: JSON-ready.
            metrics: name -> value at this step, for `best`.

        Raises:
            OSError: an earlier save failed.
            TypeError: a leaf cannot be saved, or `record` is not JSON.
            ValueError: the step is negative or there already.
        """
        if step < 0:
            raise ValueError(f"step={step} must not be negative")
        self.wait()
        arrays = leaves.storable(tree)
        facts = {
            "step": step,
            "metrics": {name: value for name, value in (metrics or {}).items() if math.isfinite(value)},
            "leaves": leaves.layouts(arrays),
        }
        text = json.dumps(dict(record), indent=1, allow_nan=False)
        if not _agree(int(jax.process_index() == 0 and self._make_room(step))):
            raise ValueError(f"{self._folder / str(step)} is there already; a run that goes back needs another folder")
        response = ocp.save_async(str(self._partial(step) / "arrays"), arrays)
        self._pending = step, self._executor.submit(self._commit, response, step, text, facts)

    def wait(self) -> None:
        """Waits until the last save is complete.

        Raises:
            OSError: it failed; the steps before it are intact.
        """
        if self._pending is None:
            return
        (step, future), self._pending = self._pending, None
        error = future.exception()
        if not _agree(int(error is None)) or error is not None:
            reason = error or "see process 0"
            raise OSError(f"{self._folder}: the checkpoint of step {step} was not written: {reason}") from error

    def steps(self) -> list[int]:
        """Returns the complete steps in ascending order, without those found damaged."""
        return [step for step in self._candidates() if step not in self._bad]

    def latest(self) -> int | None:
        """Returns the newest step whose files are as written, None if there are no steps at all.

        Raises:
            ValueError: there are steps and all of them are damaged; names the files. Nothing is deleted.
        """
        problems: list[str] = []
        step = _agree(self._newest_good(problems) if jax.process_index() == 0 else _NOTHING)
        if step == _ALL_BAD:
            raise ValueError("\n".join([f"{self._folder}: no checkpoint is intact", *problems]))
        return None if step == _NOTHING else step

    def best(self) -> int | None:
        """Returns the step with the best value of `best_metric`, None if no step has it."""
        self.wait()  # a step that is still being written may be it, and writing it may remove another
        step = _agree(self._best_step() if jax.process_index() == 0 else _NOTHING)
        return None if step == _NOTHING else step

    def restore(self, step: int, like: Any) -> Any:
        """Reads the arrays of a step straight onto the given shardings, which need not be those they were saved from.

        Args:
            step: one of `steps()`.
            like: pytree of the saved structure; leaves are arrays, or `jax.ShapeDtypeStruct` with shardings (without
                one: the first device). A numpy leaf is restored as numpy.

        Returns:
            Pytree of the structure of `like`.

        Raises:
            ValueError: the step is not there, a file of it was changed, or names, shapes or dtypes differ from `like`;
                lists all of them.
        """
        self._require_intact(step)
        path = self._folder / str(step)
        wanted = leaves.named(like)
        problems = leaves.differences(manifest.read_manifest(path)["leaves"], leaves.layouts(wanted))
        if problems:
            raise ValueError("\n".join([f"{path} does not fit this run:", *problems]))
        arrays = ocp.load(str(path / "arrays"), leaves.abstract(wanted))
        return jax.tree.unflatten(jax.tree.structure(like), [arrays[name] for name in wanted])

    def record(self, step: int) -> dict[str, Any]:
        """Returns the record that `save` was given.

        Raises:
            ValueError: the step is not there, or a file of it was changed.
        """
        self._require_intact(step)
        return json.loads((self._folder / str(step) / "record.json").read_text(encoding="utf-8"))

    def __enter__(self) -> Checkpoints:
        """Returns itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        """Waits for the last save; after an error without the other processes, which may never come here."""
        if kind is None:
            self.wait()
        elif self._pending is not None and (error := self._pending[1].exception()) is not None:
            _log.error("the checkpoint of step %d was not written: %s", self._pending[0], error)
        self._executor.shutdown()

    def _partial(self, step: int) -> Path:
        return self._folder / f"{step}.partial"

    def _candidates(self) -> list[int]:
        """Lists the folders that are steps by their name; what is foreign is logged once."""
        if not self._folder.is_dir():
            return []
        steps = []
        for path in self._folder.iterdir():
            if _is_step(path):
                steps.append(int(path.name))
            elif path.suffix not in (".partial", ".deleted") and path.name not in self._ignored:
                self._ignored.add(path.name)
                _log.warning("%s is no checkpoint; ignored", path)
        return sorted(steps)

    def _newest_good(self, problems: list[str]) -> int:
        steps = self._candidates()
        for step in reversed(steps):
            found = self._verify(step)
            if not found:
                return step
            problems += found
            _log.warning("checkpoint %d is damaged, trying the one before: %s", step, "; ".join(found))
        return _ALL_BAD if steps else _NOTHING

    def _best_step(self) -> int:
        values = {step: self._metric(step) for step in self.steps()}
        scored = {step: value for step, value in values.items() if value is not None}
        choose = max if self._best_mode == "max" else min
        return choose(scored, key=lambda step: scored[step]) if scored else _NOTHING

    def _metric(self, step: int) -> float | None:
        try:
            return manifest.read_manifest(self._folder / str(step))["metrics"].get(self._best_metric)
        except ValueError:  # damaged: it is not the best, and `latest` tells of it
            return None

    def _verify(self, step: int) -> list[str]:
        if step in self._good:
            return []
        problems = manifest.verify_files(self._folder / str(step))
        (self._bad if problems else self._good).add(step)
        return problems

    def _require_intact(self, step: int) -> None:
        problems: list[str] = []
        if jax.process_index() == 0:
            there = step in self._candidates()
            problems = self._verify(step) if there else [f"{self._folder / str(step)} is not there"]
        if not _agree(int(not problems)):
            raise ValueError("\n".join(problems) or f"process 0 cannot read {self._folder / str(step)}")

    def _make_room(self, step: int) -> bool:
        """Prepares the folder for a save; returns False if the step is there. Runs in process 0."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for path in [*self._folder.glob("*.partial"), *self._folder.glob("*.deleted")]:
            _log.info("%s is left over from an interrupted run; removed", path)
            shutil.rmtree(path)
        final = self._folder / str(step)
        if step in self._bad:
            final.rename(_free_name(final.with_suffix(".damaged")))
            self._bad.remove(step)
        return not final.exists()

    def _commit(self, response: ocp.AsyncResponse[None], step: int, record: str, facts: dict[str, Any]) -> None:
        """Completes a save behind the training; in process 0 it is this that makes the step appear."""
        try:
            response.result()
            if jax.process_index() == 0:
                partial = self._partial(step)
                (partial / "record.json").write_text(record, encoding="utf-8")
                manifest.write_manifest(partial, facts)
                partial.rename(self._folder / str(step))
                _sync(self._folder)
                self._prune()
        except BaseException:
            if jax.process_index() == 0:
                shutil.rmtree(self._partial(step), ignore_errors=True)  # a full disk needs the space
            raise

    def _prune(self) -> None:
        steps = self.steps()
        spared = {*steps[-self._keep :], self._best_step()}
        for step in steps:
            if step not in spared:
                doomed = self._folder / f"{step}.deleted"
                (self._folder / str(step)).rename(doomed)  # half a removal must not look like a step
                shutil.rmtree(doomed)


def _is_step(path: Path) -> bool:
    if not path.name.isdecimal() or path.name != str(int(path.name)) or path.is_symlink():
        return False
    try:
        return any(path.iterdir())
    except (FileNotFoundError, NotADirectoryError):  # a living run has just removed it, or it is a file
        return False


def _agree(value: int) -> int:
    """Returns what process 0 has; every process calls it."""
    if jax.process_count() == 1:
        return value
    return int(multihost_utils.broadcast_one_to_all(np.int32(value)))


def _free_name(path: Path) -> Path:
    number = 1
    free = path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.name}-{number}")
    return free


def _sync(folder: Path) -> None:
    """Makes a rename in the folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
