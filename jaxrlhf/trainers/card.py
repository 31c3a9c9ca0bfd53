"""What a run's model card says."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jaxrlhf
from jaxrlhf.checkpoint.card import Card
from jaxrlhf.config import diff, to_dict
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
        base=config.model,
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


def _settings(config: TrainConfig) -> dict[str, Any]:
    """Dotted key -> value of what is not the default, without what changes no result or is told elsewhere."""
    changed = diff(type(config)(out=config.out), config)
    found = {key: value for key, (_, value) in changed.items() if not _is_told(key)}
    whole = to_dict(config)
    return {**{key: _at(whole, key) for key in _ALWAYS}, **found}


def _is_told(key: str) -> bool:
    return key in HARMLESS or (key in ANNOUNCED and key.startswith("mesh.")) or key.startswith(_ELSEWHERE)


def _at(tree: Mapping[str, Any], key: str) -> Any:
    value: Any = tree
    for part in key.split("."):
        value = value[part]
    return value
