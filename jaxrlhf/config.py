"""Configs: frozen keyword-only dataclasses, read from YAML, overridden by `a.b=c`, and written back.

The annotation of a field decides what a text means, never YAML's guess: `1e-5` is a number in a float field and `no` a
string in a string field. Fields are bool, int, finite float, str, `Literal`, dataclasses, tuples and string-keyed
dictionaries of these, and any of them `| None`.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from jaxrlhf.config_text import COMMAND_LINE, ONE_ARGUMENT, Node, container, override, read

T = TypeVar("T")

ABSENT = "<absent>"
"""What `diff` shows for a key that one side does not have."""

_ROOT = "config"  # what messages call the whole

_INVALID: Any = object()  # stands for a value that could not be read; its problem is in the list


def load(cls: type[T], path: str | Path | None = None, overrides: Sequence[str] = ()) -> T:
    """Reads a config, and reports everything that is wrong with it at once.

    Args:
        cls: the dataclass to fill.
        path: YAML file of at most 1 MB, or None for the defaults alone.
        overrides: `key=value` texts such as `ppo.clip_eps=0.1` or `datasets.0.path=x`, applied in order. The value of a
            tuple or dictionary is YAML: `stop=[a, b]`. One string is a list of one: `stop=a`.

    Returns:
        An instance of `cls`.

    Raises:
        FileNotFoundError: `path` does not exist.
        ValueError: the file is not plain YAML, or keys are unknown, missing, repeated or of the wrong type; names
            file and line of each, and what was expected.
    """
    problems: list[str] = []
    root = Node({}, COMMAND_LINE) if path is None else read(Path(path), problems)
    for text in overrides:
        override(root, text, problems)
    config = _convert(cls, root, _ROOT, dataclasses.MISSING, problems)
    if problems:
        raise ValueError("\n".join(problems))
    return config


def to_dict(config: Any) -> dict[str, Any]:
    """Returns a config dataclass as JSON-ready dictionaries, lists, strings and numbers."""
    return _plain(config)


def dump(config: Any) -> str:
    """Returns the YAML text that `load` turns into an equal config."""
    return str(yaml.safe_dump(_plain(config), sort_keys=False, allow_unicode=True, width=math.inf))


def diff(a: Any, b: Any) -> dict[str, tuple[Any, Any]]:
    """Compares two configs.

    Args:
        a: a config, or what `to_dict` made of one (in an earlier version, say).
        b: another.

    Returns:
        Dotted key -> (value in `a`, value in `b`) where they differ; `ABSENT` stands for no such key.
    """
    left, right = dict(_leaves(_plain(a))), dict(_leaves(_plain(b)))
    pairs = {key: (left.get(key, ABSENT), right.get(key, ABSENT)) for key in [*left, *right]}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def type_name(wanted: Any) -> str:
    """Names the type of a field as a user would: `float`, `one of 'a', 'b'`, `list of int`, `string or null`."""
    origin, arguments = typing.get_origin(wanted), typing.get_args(wanted)
    if origin is typing.Literal:
        return "one of " + ", ".join(repr(option) for option in arguments)
    if origin in (typing.Union, types.UnionType):
        return f"{type_name(optional_type(wanted))} or null"
    if origin is tuple:
        return f"list of {type_name(arguments[0])}"
    if origin is dict:
        return f"mapping to {type_name(arguments[1])}"
    return {str: "string", bool: "true or false"}.get(wanted) or wanted.__name__


def optional_type(wanted: Any) -> Any:
    """Returns X for `X | None`, and any other type as it is; a union of several is a TypeError."""
    if typing.get_origin(wanted) not in (typing.Union, types.UnionType):
        return wanted
    options = [option for option in typing.get_args(wanted) if option is not types.NoneType]
    if len(options) != 1:
        raise TypeError(f"a config field cannot be of type {wanted}: use one type, or one type and None")
    return options[0]


def section_of(wanted: Any) -> tuple[str, Any] | None:
    """Finds the dataclass whose keys stand below the key of a field.

    Args:
        wanted: the type of the field.

    Returns:
        What stands between the two keys, and the dataclass: `.` and X for `X` or `X | None`, `.0.` and X for a tuple of
        X, and None for any other type.
    """
    inner, link = optional_type(wanted), "."
    if typing.get_origin(inner) is tuple:
        inner, link = typing.get_args(inner)[0], ".0."
    return (link, inner) if dataclasses.is_dataclass(inner) else None


def default_of(field: dataclasses.Field) -> Any:
    """Returns the default of a dataclass field, `dataclasses.MISSING` if it has none."""
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value


def _leaves(value: Any, prefix: str = "") -> list[tuple[str, Any]]:
    if not isinstance(value, dict | list) or not value:
        return [(prefix, value)]
    items = value.items() if isinstance(value, dict) else enumerate(value)
    return [leaf for key, item in items for leaf in _leaves(item, f"{prefix}.{key}" if prefix else str(key))]


def _convert(wanted: Any, node: Node, key: str, default: Any, problems: list[str]) -> Any:
    """Returns the value of type `wanted` that `node` stands for, or `_INVALID` after adding to `problems`."""
    inner = optional_type(wanted)
    if inner is not wanted and node.kind == "null":
        return None
    convert = _converter(inner)
    if convert is not None:
        whole = container(node, key, problems)
        start = dataclasses.MISSING if default is None else default
        return _INVALID if whole is None else convert(inner, whole, key, start, problems)
    options = typing.get_args(inner) if typing.get_origin(inner) is typing.Literal else ()
    values = [option for option in options if _scalar(type(option), node) == option]
    value = next(iter(values), _INVALID) if options else _scalar(inner, node)
    if value is _INVALID:
        close = difflib.get_close_matches(str(node.value), [str(option) for option in options], n=1)
        expected = "a finite number" if inner is float and _is_not_finite(node) else type_name(wanted)
        _complain(node, key, expected, problems, hint=f"; did you mean {close[0]!r}?" if close else "")
    return value


def _converter(wanted: Any) -> Callable[..., Any] | None:
    """Returns what fills a type that holds several values, None for a type that holds one."""
    if dataclasses.is_dataclass(wanted):
        return _convert_dataclass
    return {tuple: _convert_tuple, dict: _convert_dict}.get(typing.get_origin(wanted))


def _convert_dataclass(cls: Any, node: Node, key: str, default: Any, problems: list[str]) -> Any:
    """Fills a dataclass; what is not given comes from `default`, an instance of it, or else from its fields."""
    if not isinstance(node.value, dict):
        names = ", ".join(field.name for field in dataclasses.fields(cls))
        hint = _spaces(node) or _path_meant(cls, node, key)
        return _complain(node, key, f"a mapping with the keys {names}", problems, hint=hint)
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    before = len(problems)
    for name, child in node.value.items():
        if name not in fields:
            problems.append(f"{child.where}: {key}.{name} is unknown; {_suggestion(name, cls)}")
    values = {}
    for name, field in fields.items():
        start = default_of(field) if default is dataclasses.MISSING else getattr(default, name)
        child = node.value.get(name)
        if child is None and start is not dataclasses.MISSING:
            values[name] = start
        elif child is not None or dataclasses.is_dataclass(hints[name]):  # for a section, tell what it lacks
            child = Node({}, node.where) if child is None else child
            values[name] = _convert(hints[name], child, f"{key}.{name}", start, problems)
        else:
            problems.append(f"{node.where}: {key}.{name} is missing; expected {type_name(hints[name])}")
    return _INVALID if len(problems) > before else _construct(cls, values, node, key, problems)


def _construct(cls: Any, values: dict[str, Any], node: Node, key: str, problems: list[str]) -> Any:
    try:
        return cls(**values)
    except (ValueError, TypeError) as error:  # what the config's own checks say, with the place added
        place = node.where if key == _ROOT else f"{node.where}: {key}"
        problems.append(f"{place}: {error}")
        return _INVALID


def _convert_tuple(wanted: Any, node: Node, key: str, default: Any, problems: list[str]) -> Any:
    """Fills a tuple from a list, one string, or overrides of single entries, which change entries of the default."""
    kinds = typing.get_args(wanted)
    of_strings = kinds[-1] is Ellipsis and (kinds[0] is str or typing.get_origin(kinds[0]) is typing.Literal)
    entries = list(default) if node.partial and default is not dataclasses.MISSING else []
    if isinstance(node.value, list):
        given = dict(enumerate(node.value))
    elif node.partial and isinstance(node.value, dict) and all(name.isdecimal() for name in node.value):
        given = {int(name): child for name, child in node.value.items()}
    elif of_strings and isinstance(node.value, str) and node.value and node.kind != "null":
        given = {0: node}
    else:
        return _complain(node, key, type_name(wanted), problems)
    for index, child in sorted(given.items()):
        if index > len(entries):
            size = f"{key} has {len(entries)} entries, counted from 0"
            problems.append(f"{child.where}: {key}.{index} is unknown; {size}")
            return _INVALID
        kind = kinds[0] if kinds[-1] is Ellipsis else kinds[min(index, len(kinds) - 1)]
        start = entries[index] if index < len(entries) else dataclasses.MISSING
        entries[index : index + 1] = [_convert(kind, child, f"{key}.{index}", start, problems)]
    if kinds[-1] is not Ellipsis and len(entries) != len(kinds):
        return _complain(node, key, f"{len(kinds)} entries, not {len(entries)}", problems)
    return tuple(entries)


def _convert_dict(wanted: Any, node: Node, key: str, default: Any, problems: list[str]) -> Any:
    if not isinstance(node.value, dict):
        return _complain(node, key, type_name(wanted), problems, hint=_spaces(node))
    kind = typing.get_args(wanted)[1]
    start = dict(default) if node.partial and default is not dataclasses.MISSING else {}
    for name, child in node.value.items():
        start[name] = _convert(kind, child, f"{key}.{name}", dataclasses.MISSING, problems)
    return start


def _scalar(wanted: type, node: Node) -> Any:
    """Returns a str, bool, int or float, or `_INVALID` if the text of `node` is not one."""
    if wanted not in (str, bool, int, float):
        raise TypeError(f"a config field cannot be of type {wanted}; jaxrlhf.config says which it can have")
    text = node.value
    if not isinstance(text, str) or node.kind == "null":
        return _INVALID
    if wanted is str:
        return text
    if wanted is bool and node.kind == "bool":
        return text.lower() == "true"
    if wanted is int and node.kind == "int":
        return int(text)
    if wanted is float and node.kind in ("int", "float") and math.isfinite(float(text)):
        return float(text)
    return _INVALID


def _is_not_finite(node: Node) -> bool:
    """Whether it is a number that no float field takes: infinity or NaN, as Python or YAML writes them, or 1e999."""
    if not isinstance(node.value, str):
        return False
    try:
        return not math.isfinite(float(re.sub(r"^([+-]?)\.(?=[a-zA-Z])", r"\1", node.value)))
    except ValueError:
        return False


def _complain(node: Node, key: str, expected: str, problems: list[str], hint: str = "") -> Any:
    problems.append(f"{node.where}: {key}: found {node}, expected {expected}{hint}")
    return _INVALID


def _spaces(node: Node) -> str:
    """What to add of a text where a mapping should be: shells make `x=a:b x=c:d` of `x={a:b,c:d}`."""
    split = node.where == COMMAND_LINE and isinstance(node.value, str) and ":" in node.value
    return f"; {ONE_ARGUMENT}" if split else ""


def _path_meant(cls: type, node: Node, key: str) -> str:
    """What to add of a text where a section should be that names a path: it may be that path."""
    paths = [field.name for field in dataclasses.fields(cls) if field.name in ("dataset", "path")]
    if not paths or node.kind != "string" or not node.value:
        return ""
    return f"; did you mean {key.removeprefix(f'{_ROOT}.')}.{paths[0]}={node.value}?"


def _suggestion(name: str, cls: type) -> str:
    """Says which keys have a name that is close to an unknown one, here or in a section below."""
    by_name: dict[str, list[str]] = {}
    for key in _keys(cls):
        by_name.setdefault(key.rpartition(".")[2], []).append(key)
    close = difflib.get_close_matches(name, by_name, n=1)  # the very name, if a section has it
    if close:
        return f"did you mean {' or '.join(map(repr, by_name[close[0]]))}?"
    return f"the keys here are {', '.join(field.name for field in dataclasses.fields(cls))}"


def _keys(cls: type, prefix: str = "") -> Iterator[str]:
    """Yields the dotted keys of a config dataclass and of those within it."""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        yield prefix + field.name
        section = section_of(hints[field.name])
        if section is not None:
            yield from _keys(section[1], f"{prefix}{field.name}{section[0]}")
