"""A published `config.json` to a `ModelConfig` and back, by the table of a family."""

from __future__ import annotations

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

from jaxrlhf.models.config import Activation, ModelConfig, pattern_of
from jaxrlhf.models.families.family import Family, Tensor

Raw = Mapping[str, Any]
"""The contents of a `config.json`."""

ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
}
"""Published name of an activation -> ours; the first of several is the one that is written."""

_ONLY = {"quantization_config": None, "is_causal": True}
"""Options that transformers knows for every family; see `ConfigTable.only`."""

_DERIVED: dict[str, Callable[[Mapping[str, Any]], int]] = {
    "num_key_value_heads": lambda fields: fields["num_heads"],
    "head_dim": lambda fields: fields["hidden_size"] // max(fields["num_heads"], 1),
    "n_inner": lambda fields: 4 * fields["hidden_size"],
}
"""Published key -> what its field is where it is null, or left out without a default."""

_KINDS: dict[Any, tuple[tuple[type, ...], str]] = {
    int: ((int,), "a whole number"),
    float: ((int, float), "a number"),
    float | None: ((int, float, types.NoneType), "a number or null"),
    bool: ((bool,), "true or false"),
}
"""Type of a field -> the types of its published values, and what to call them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConfigTable:
    """How the config of a family reads. What it lists nowhere does not change what the model computes.

    Attributes:
        model_type: published name of the family.
        architecture: published name of the language model.
        scalar_architecture: published name of the model with one score a token.
        fields: published key -> the field that holds its value, or several.
        defaults: published key -> its value where a file leaves it out: that of transformers.
        only: options that change what a model computes -> the one value that is supported, which is also that of
            transformers where a file leaves the option out.
        fixed: fields that are the same in all of the family.
        read_rest: (contents of the file, fields so far, problems, to which it adds) -> the other fields.
        write_rest: the keys and values for those.
    """

    model_type: str
    architecture: str
    scalar_architecture: str
    fields: Mapping[str, str | tuple[str, ...]]
    defaults: Mapping[str, Any]
    only: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    read_rest: Callable[[Raw, Mapping[str, Any], list[str]], dict[str, Any]]
    write_rest: Callable[[ModelConfig], dict[str, Any]]


def make_family(table: ConfigTable, tensors: tuple[Tensor, ...], ignored: tuple[str, ...]) -> Family:
    """A family by its two tables.

    Args:
        table: for its config.
        tensors: for its weights.
        ignored: see `Family`.

    Returns:
        `Family`.
    """
    return Family(
        architecture=table.architecture,
        scalar_architecture=table.scalar_architecture,
        tensors=tensors,
        ignored=ignored,
        read_config=functools.partial(read_config, table),
        write_config=functools.partial(write_config, table),
    )


def read_config(table: ConfigTable, raw: Raw, where: str) -> ModelConfig:
    """Reads a config as transformers does.

    Args:
        table: of the family.
        raw: contents of `config.json`.
        where: name of the file, for messages.

    Returns:
        `ModelConfig`.

    Raises:
        ValueError: if the file is broken or names what is not supported, all such options at once.
    """
    try:
        return _read(table, raw)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def write_config(table: ConfigTable, config: ModelConfig) -> dict[str, Any]:
    """Writes a config so that versions 4 and 5 of transformers read it.

    Args:
        table: of the family.
        config: to write.

    Returns:
        Contents of `config.json`, without token ids.

    Raises:
        ValueError: if the family has no words for an option of the model.
    """
    raw = {
        "architectures": [table.scalar_architecture if config.scalar_head else table.architecture],
        "model_type": table.model_type,
        **{key: _published_value(names[0], config) for key, names in _names(table).items()},
        **table.write_rest(config),
    }
    if config.scalar_head:
        raw |= {"id2label": {"0": "score"}, "label2id": {"score": 0}}  # one label
    kinds = [config.kind(layer) for layer in range(config.num_layers)]
    wanted, back = dataclasses.replace(config, pattern=pattern_of(kinds)), _read(table, raw)
    names = [field.name for field in dataclasses.fields(config)]
    lost = [f"{name}={getattr(wanted, name)!r}" for name in names if getattr(wanted, name) != getattr(back, name)]
    if lost:
        raise ValueError(f"a config of model_type={table.model_type!r} cannot say {', '.join(lost)}")
    return raw


def read_number(raw: Raw, key: str, default: float, problems: list[str], *, allow_zero: bool = False) -> float:
    """Reads a number.

    Args:
        raw: contents of the file.
        key: to read.
        default: its value where the file leaves it out, or is wrong.
        problems: to add to.
        allow_zero: whether it may be 0 rather than only positive.

    Returns:
        The number.
    """
    value = raw.get(key, default)
    is_number = type(value) in (int, float) and math.isfinite(value)  # a bool is an int too
    if is_number and (value > 0 or (allow_zero and value == 0)):
        return float(value)
    problems.append(f"{key}={value!r} must be a {'' if allow_zero else 'positive '}number")
    return default


def _read(table: ConfigTable, raw: Raw) -> ModelConfig:
    fields, problems = _read_fields(table, raw)
    rest_can_be_read = not problems  # it builds on the sizes
    problems += [
        f"{key}={raw[key]!r} is not supported; only {only!r} is"
        for key, only in (_ONLY | dict(table.only)).items()
        if raw.get(key) is not None and raw[key] != only
    ]
    architectures = raw.get("architectures") or [table.architecture]
    if architectures not in ([table.architecture], [table.scalar_architecture]):
        known = f"{table.architecture}, {table.scalar_architecture}"
        problems.append(f"architectures={architectures!r} is not one of {known}")
    rest = table.read_rest(raw, fields, problems) if rest_can_be_read else {}
    if problems:
        raise ValueError("; ".join(problems))
    scalar = architectures == [table.scalar_architecture]
    return ModelConfig(model_type=table.model_type, scalar_head=scalar, **table.fixed, **fields, **rest)


def _read_fields(table: ConfigTable, raw: Raw) -> tuple[dict[str, Any], list[str]]:
    hints = typing.get_type_hints(ModelConfig)
    fields: dict[str, Any] = {}
    problems: list[str] = []
    left_out: list[str] = []
    for key, names in _names(table).items():
        value = raw.get(key, table.defaults.get(key))
        if value is None and key in _DERIVED:
            left_out.append(key)
        elif names == ("activation",):
            fields["activation"] = _read_activation(key, value, problems)
        else:
            fields |= dict.fromkeys(names, value)
            kinds, words = _KINDS[hints[names[0]]]
            if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
                problems.append(f"{key}={value!r} must be {words}")
    if not problems:
        fields |= {name: _DERIVED[key](fields) for key in left_out for name in _names(table)[key]}
    return fields, problems


def _read_activation(key: str, value: Any, problems: list[str]) -> Activation | None:
    if isinstance(value, str) and value in ACTIVATIONS:
        return ACTIVATIONS[value]
    problems.append(f"{key}={value!r} is not supported; only {', '.join(map(repr, ACTIVATIONS))} are")
    return None


def _published_value(name: str, config: ModelConfig) -> Any:
    value = getattr(config, name)
    if name == "activation":
        return next(published for published, ours in ACTIVATIONS.items() if ours == value)
    return value


def _names(table: ConfigTable) -> dict[str, tuple[str, ...]]:
    return {key: (names,) if isinstance(names, str) else names for key, names in table.fields.items()}
