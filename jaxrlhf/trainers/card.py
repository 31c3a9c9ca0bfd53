"""What a run's model card says."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jaxrlhf
from jaxrlhf.checkpoint.card import Card
from jaxrlhf.config import diff, to_dict
from jaxrlhf.models.folder import ADAPTER, read_json
from jaxrlhf.trainers.config import TrainConfig
from jaxrlhf.trainers.same_run import ANNOUNCED, HARMLESS

_ALWAYS = ("batch_size", "optim.learning_rate", "optim.schedule", "data.max_length", "seed")
"""Settings that a card names even where they are the default."""

_ELSEWHERE = ("model", "dataset", "datasets.", "ptx.dataset")
"""Keys that the rest of the card tells of, or their beginning."""


def make_card(config: TrainConfig, rows: int, steps: int, metrics: Mapping[str, float]) -> Card:
    """Collects what is known of the model that a run has trained.

    Args:
        config: of the run.
        rows: examples of an epoch.
        steps: taken.
        metrics: the last value of each; times and what is not finite are left out.
    """
    ptx = getattr(getattr(config, "ptx", None), "dataset", None)
    named = [config.dataset, *(data.path for data in config.datasets), ptx]
    numbers = {name: value for name, value in metrics.items() if not name.startswith("time/") and math.isfinite(value)}
    return Card(
        method=type(config).__name__.removesuffix("Config").lower(),
        base=root_of(config.model),
        scorer=type(config).__name__ == "RewardConfig",
        data=tuple(name for name in named if name is not None),
        rows=rows,
        steps=steps,
        metrics=numbers,
        settings=_settings(config),
        version=jaxrlhf.__version__,
    )


def recorded_card(record: Mapping[str, Any]) -> Card | None:
    """The card that the record of a checkpoint holds; those of earlier versions hold none."""
    return Card(**record["card"]) if "card" in record else None


def root_of(name: str) -> str:
    """The model at the root of the runs and adapters that led to a model, as far as this disk tells.

    Args:
        name: see `trainers.start.resolve`.

    Returns:
        Its hub id or folder; "" for a model in memory.
    """
    seen: list[str] = []
    while name and name not in seen and (before := _before(Path(name))) is not None:
        seen.append(name)
        name = before
    return name


def _before(folder: Path) -> str | None:
    """What the model of a folder was made from; "" if that was in memory, None if nothing is known of it."""
    run = folder.parent if folder.name == "export" else folder
    for file in (run / "checkpoints").glob("*/record.json"):  # they agree in this
        if "base" in (record := read_json(file)):
            return "" if record["base"] is None else record["base"]["name"]
    if (folder / ADAPTER).is_file():
        return read_json(folder / ADAPTER).get("base_model_name_or_path")
    return None


def _settings(config: TrainConfig) -> dict[str, Any]:
    """Dotted key -> value of what is not the default, without what changes no result or is told elsewhere."""
    changed = diff(type(config)(out=config.out), config)
    found = {key: value for key, (_, value) in changed.items() if not _is_told(key)}
    whole = to_dict(config)
    lora = config.lora
    adapters = {} if lora.rank is None else {"rank": lora.rank, "alpha": lora.used_alpha, "targets": list(lora.targets)}
    return {
        **{key: _at(whole, key) for key in _ALWAYS},
        **found,
        **{f"lora.{key}": value for key, value in adapters.items()},
    }


def _is_told(key: str) -> bool:
    return key in HARMLESS or (key in ANNOUNCED and key.startswith("mesh.")) or key.startswith(_ELSEWHERE)


def _at(tree: Mapping[str, Any], key: str) -> Any:
    value: Any = tree
    for part in key.split("."):
        value = value[part]
    return value
