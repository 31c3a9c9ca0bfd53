"""What config dataclasses check of themselves, in `__post_init__`: choices, ranges and combinations."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import re
import types
import typing
from collections.abc import Iterator
from typing import Any

Condition = tuple[bool, str]
"""Whether something holds, and what to say if it does not: the key, the value found and what is expected."""


def check(config: Any, *conditions: Condition) -> None:
    """Checks a config, and reports everything that is wrong with it at once.

    Args:
        config: instance of a dataclass. Each of its fields of type `Literal`, or `Literal | None`, must hold one of its
            choices.
        conditions: what else must hold.

    Raises:
        ValueError: with the messages of all that does not hold.
    """
    problems = [*_wrong_choices(config), *(message for holds, message in conditions if not holds)]
    if problems:
        raise ValueError("; ".join(problems))


def positive(config: Any, *names: str) -> list[Condition]:
    """The conditions that numbers are above 0; None is no number, and fine."""
    values = {name: getattr(config, name) for name in names}
    return [(value is None or value > 0, f"{name}={value} must be positive") for name, value in values.items()]


def not_negative(config: Any, *names: str) -> list[Condition]:
    """The conditions that numbers are 0 or above; None is no number, and fine."""
    values = {name: getattr(config, name) for name in names}
    return [(value is None or value >= 0, f"{name}={value} must not be negative") for name, value in values.items()]


def is_pattern(text: str) -> bool:
    """Whether a text is a regular expression."""
    try:
        re.compile(text)
    except re.error:
        return False
    return True


def _wrong_choices(config: Any) -> Iterator[str]:
    for name, choices in _choices(type(config)).items():
        value = getattr(config, name)
        if value not in choices:
            close = difflib.get_close_matches(str(value), [str(choice) for choice in choices], n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            yield f"{name}={value!r} is unknown; expected one of {', '.join(map(repr, choices))}{hint}"


@functools.cache
def _choices(cls: type) -> dict[str, tuple[Any, ...]]:
    """Returns name -> choices of those fields that have any; looking annotations up is slow, hence the cache."""
    hints = typing.get_type_hints(cls)
    found = {field.name: _choices_of(hints[field.name]) for field in dataclasses.fields(cls)}
    return {name: choices for name, choices in found.items() if choices}


def _choices_of(wanted: Any) -> tuple[Any, ...]:
    origin, arguments = typing.get_origin(wanted), typing.get_args(wanted)
    if origin is typing.Literal:
        return arguments
    if origin in (typing.Union, types.UnionType) and len(arguments) == 2 and arguments[1] is types.NoneType:
        inner = _choices_of(arguments[0])
        return (*inner, None) if inner else ()
    return ()
