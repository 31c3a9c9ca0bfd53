"""Python rewards: any callable on prompts and completions, run on the host.

A reward is `f(prompts, completions, **columns) -> list[float | None]`: one number an answer, None where it has no
opinion. `columns` are the other columns of the data, one value an answer. It may look at the whole batch at once.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import math
import numbers
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

RewardFn = Callable[..., Sequence[float | None]]


def load_reward(spec: str) -> RewardFn:
    """Imports a reward by name: the one import by name in the package, of what the user's own command names.

    Args:
        spec: `path/to/file.py:function`, or `package.module:function`.

    Raises:
        ValueError: if the name has no colon, the file or module is not there, or has no such function.
    """
    where, _, name = spec.rpartition(":")
    if not where or not name:
        raise ValueError(f"reward {spec!r} names no function; write path.py:function or package.module:function")
    module = _load_file(Path(where)) if where.endswith(".py") else _load_module(where)
    function: RewardFn | None = getattr(module, name, None)
    if not callable(function):
        known = sorted(key for key, value in vars(module).items() if callable(value) and not key.startswith("_"))
        raise ValueError(f"reward {spec!r}: {where} has no function {name!r}; it has {known}")
    return function


def name_rewards(rewards: Sequence[RewardFn], *, taken: Sequence[str] = ()) -> dict[str, RewardFn]:
    """The rewards by the names that their metrics carry, which are those of the functions.

    Args:
        rewards: the functions.
        taken: names that something else carries.

    Raises:
        ValueError: if two have the same name.
    """
    named: dict[str, RewardFn] = {}
    for reward in rewards:
        name = getattr(reward, "__name__", type(reward).__name__)
        if name in named or name in taken:
            raise ValueError(f"two rewards are called {name!r}; give each function a name of its own")
        named[name] = reward
    return named


def check_columns(rewards: Mapping[str, RewardFn], columns: Sequence[str]) -> None:
    """Refuses rewards that cannot be called with the columns of the data.

    Args:
        rewards: name -> function.
        columns: names of the columns that the data have beside the prompt.

    Raises:
        ValueError: if a column is called like an argument, or a reward does not take one, or needs one that is missing.
    """
    for name, reward in rewards.items():
        for argument in {"prompts", "completions"} & set(columns):
            raise ValueError(
                f"the data have a column {argument!r}, but reward {name} has an argument of this name; rename the "
                f"column, in the file or with data.columns={{NEW_NAME: {argument}}}"
            )
        try:
            signature = inspect.signature(reward)
        except ValueError:  # some callables of C have none
            continue
        try:
            signature.bind([], [], **dict.fromkeys(columns, []))
        except TypeError as error:
            known = ", ".join(columns) or "none"
            raise ValueError(
                f"reward {name} cannot be called with the columns of the data, {known}: {error}; "
                f"write def {name}(prompts, completions, **columns)"
            ) from error


def call_rewards(
    rewards: Mapping[str, RewardFn],
    prompts: Sequence[Any],
    completions: Sequence[Any],
    columns: Mapping[str, Sequence[Any]],
) -> dict[str, np.ndarray]:
    """Calls every reward.

    Args:
        rewards: name -> function.
        prompts: B prompts, strings or message lists.
        completions: B answers.
        columns: further columns of B values, none of them called `prompts` or `completions`.

    Returns:
        Name of the reward -> its scores [B] float32, NaN where it has no opinion.

    Raises:
        ValueError: see `check_columns`; or if a reward returns another number of values, or one that is not finite.
    """
    check_columns(rewards, list(columns))
    return {name: _call(reward, name, prompts, completions, columns) for name, reward in rewards.items()}


def _call(
    reward: RewardFn,
    name: str,
    prompts: Sequence[Any],
    completions: Sequence[Any],
    columns: Mapping[str, Sequence[Any]],
) -> np.ndarray:
    try:
        values: Any = reward(list(prompts), list(completions), **columns)
    except Exception as error:
        known = f"the columns {', '.join(columns)}" if columns else "no other columns"
        error.add_note(f"in reward {name}, on {len(completions)} completions with {known}")
        raise
    is_list = isinstance(values, Sequence) or getattr(values, "ndim", 0) > 0  # numpy's, or jax's on some device
    if not is_list or len(values) != len(completions):
        found = f"{len(values)} values" if is_list else type(values).__name__
        raise ValueError(f"reward {name} returned {found} for {len(completions)} completions; return one number each")
    return np.array([_number(value, name, row) for row, value in enumerate(values)], np.float32)


def _number(value: Any, name: str, row: int) -> float:
    if value is None:
        return math.nan
    is_array = getattr(value, "shape", None) == () and not isinstance(value, str | bytes)  # numpy's strings have one
    if not (isinstance(value, numbers.Real) or is_array) or not math.isfinite(float(value)):
        raise ValueError(f"reward {name} returned {value!r} for completion {row}; return a finite number, or None")
    return float(value)


def _load_file(path: Path) -> Any:
    if not path.is_file():
        raise ValueError(f"reward file {path} does not exist")
    spec = importlib.util.spec_from_file_location(str(path), path)
    assert spec is not None and spec.loader is not None
    # Dataclasses look their module up by its name; under its path it hides no other.
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _load_module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):  # it is there, what it imports is not
            raise
        raise ValueError(f"reward module {name!r} is not installed; to name a file, end it with .py") from error
