"""The config of a run beside what it would have been: the recipe that it was started with, or the defaults."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import yaml

from jaxrlhf.config import ABSENT, diff, load, to_dict
from jaxrlhf.report.folder import METHODS, RunRecord
from jaxrlhf.report.numbers import NOTHING
from jaxrlhf.report.story import recipe_path


class Setting(NamedTuple):
    """A key, its value, and the value that it would have had; None where that is the same."""

    key: str
    value: str
    usual: str | None


class Settings(NamedTuple):
    """All keys of a run, and what they are compared with: the recipe's path, or the defaults."""

    rows: list[Setting]
    compared_with: str


def settings_of(run: RunRecord) -> Settings:
    """Compares the config of a run with the recipe if it is there and can be read, else with the defaults."""
    usual, name = _usual(run)
    changed = diff(usual, run.config)
    rows = [
        Setting(key, written(value), _usually(changed[key][0]) if key in changed else None)
        for key, (_, value) in diff({}, run.config).items()
    ]
    return Settings(rows, name)


def differing(runs: Sequence[RunRecord]) -> dict[str, list[str]]:
    """The keys whose values are not the same in all runs: key -> the value in each."""
    values = [{key: written(value) for key, (_, value) in diff({}, run.config).items()} for run in runs]
    keys = dict.fromkeys(key for own in values for key in own)
    rows = {key: [own.get(key, "") for own in values] for key in keys}
    return {key: row for key, row in rows.items() if len(set(row)) > 1}


def written(value: Any) -> str:
    """A value as one would write it in YAML."""
    if isinstance(value, str):
        return value or "''"
    return (
        yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**9).removesuffix("\n...\n").strip()
    )


def _usually(value: Any) -> str:
    return NOTHING if value == ABSENT else written(value)


def _usual(run: RunRecord) -> tuple[Mapping[str, Any], str]:
    cls, out = METHODS[run.method].config, f"out={run.config.get('out', '')}"
    path = recipe_path(run)
    if path is None:
        return to_dict(cls(out=str(run.config.get("out", "")))), "the defaults"
    try:
        return to_dict(load(cls, path, [out])), f"the recipe {path}"
    except ValueError as error:  # a recipe that has been changed since, or of another version
        return to_dict(cls(out="")), f"the defaults, since the recipe cannot be read: {error}"
