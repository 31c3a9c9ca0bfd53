"""Whether a folder holds the run that is asked for now: what may change when a run is resumed, and what may not."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import yaml

from jaxrlhf.config import diff, load, to_dict
from jaxrlhf.trainers.config import TrainConfig

log = logging.getLogger(__name__)

HARMLESS = {"out", "log_every", "eval_every", "eval_batch_size", "save_every", "keep", "samples_every", "trackers"}
"""Keys that a resumed run may change without a word."""

ANNOUNCED = {"steps", "epochs", "mesh.data", "mesh.fsdp", "mesh.tensor", "mesh.cpu_devices"}
"""Keys that a resumed run may change, and that are logged: the schedule, and rounding, depend on them."""


def check_same_run(folder: Path, config: TrainConfig) -> None:
    """Holds a config against that of the run whose checkpoints are in a folder.

    Args:
        folder: of the run.
        config: what is asked now.

    Raises:
        ValueError: if it is a run of another method, or a key has changed that may not.
    """
    path = folder / "config.yaml"
    common = {field.name for field in dataclasses.fields(TrainConfig)}  # a version may add to these
    there = set(yaml.safe_load(path.read_text(encoding="utf-8"))) - common
    if there != (here := set(to_dict(config)) - common):
        raise ValueError(
            f"{folder} holds a run of another method, or of another version of this one (only one of them has "
            f"{', '.join(sorted(there ^ here))}); choose another `out`"
        )
    changed = diff(load(type(config), path), config)
    free = {key for key in changed if key in ANNOUNCED or key.partition(".")[0] in HARMLESS}
    blocked = [f"{key}: {old!r} -> {new!r}" for key, (old, new) in changed.items() if key not in free]
    if blocked:
        raise ValueError(
            f"{folder} holds a run with another configuration ({'; '.join(blocked)}); choose another `out` (to go on "
            f"from its model, with model={folder} once it has ended), or remove the folder"
        )
    for key in ANNOUNCED & set(changed):
        log.info("%s of %s changes from %r to %r", key, folder, *changed[key])
    if {"steps", "epochs"} & set(changed) and config.optim.schedule != "constant":
        log.warning(
            "the %s schedule was planned to end earlier; the rate jumps, and the result is not that of one long run",
            config.optim.schedule,
        )
