"""The fields of a config as a list to read: key, type, default, and what its docstring says."""

from __future__ import annotations

import dataclasses
import inspect
import re
import typing
from typing import Any

from jaxrlhf.config import default_of, section_of, type_name


@dataclasses.dataclass(frozen=True, kw_only=True)
class FieldDoc:
    """One entry of the help of a command.

    Attributes:
        key: dotted, as on the command line.
        type: as `config.type_name` says it.
        default: as one would write it, or None where a value is required.
        doc: what the docstring says; empty if it says nothing.
    """

    key: str
    type: str
    default: str | None
    doc: str


def describe(cls: type, prefix: str = "", default: Any = dataclasses.MISSING) -> list[FieldDoc]:
    """Lists the fields of a config dataclass and of those within it.

    Args:
        cls: the dataclass.
        prefix: put before each key.
        default: an instance whose values are the defaults; if missing, those of the fields are.

    Returns:
        A `FieldDoc` for each key that can be set, in the order of declaration.
    """
    hints, docs = typing.get_type_hints(cls), field_docs(cls)
    rows = []
    for field in dataclasses.fields(cls):
        key, wanted = prefix + field.name, hints[field.name]
        start = default_of(field) if default is dataclasses.MISSING else getattr(default, field.name)
        if not dataclasses.is_dataclass(wanted):  # a section that is always there is told by its keys
            row = FieldDoc(key=key, type=type_name(wanted), default=_written(start), doc=docs.get(field.name, ""))
            rows.append(row)
        rows += _describe_section(wanted, key, start)
    return rows


def _describe_section(wanted: Any, key: str, start: Any) -> list[FieldDoc]:
    section = section_of(wanted)
    if section is None:
        return []
    link, cls = section
    return describe(cls, key + link, start if dataclasses.is_dataclass(start) else dataclasses.MISSING)


def field_docs(cls: type) -> dict[str, str]:
    """Reads what the source says of the fields of a dataclass and of those that it extends.

    Args:
        cls: the dataclass, defined in a file.

    Returns:
        Field name -> the comment lines above it, else its entry under `Attributes:` in the docstring of the class.
    """
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if dataclasses.is_dataclass(base):
            docs |= _attributes(base) | _comments(base)
    return docs


def _attributes(cls: type) -> dict[str, str]:
    docs: dict[str, str] = {}
    name = ""
    for line in inspect.cleandoc(cls.__doc__ or "").partition("Attributes:\n")[2].splitlines():
        indent = len(line) - len(line.lstrip())
        if line and indent == 0:  # the next section
            break
        if indent == 4:
            name, _, text = line.strip().partition(": ")
            docs[name] = text
        elif line:
            docs[name] += " " + line.strip()
    return docs


def _comments(cls: type) -> dict[str, str]:
    docs: dict[str, str] = {}
    above: list[str] = []
    for line in inspect.getsource(cls).splitlines():
        text = line.strip()
        field = re.match(r"(\w+):", text)
        if field and above:
            docs[field[1]] = " ".join(above)
        above = [*above, text.lstrip("# ")] if text.startswith("#") else []
    return docs


def _written(value: Any) -> str | None:
    """Returns a default as one would write it in YAML; None where there is none."""
    if value is dataclasses.MISSING:
        return None
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(str(_written(item)) for item in value)}]"
    return "null" if value is None else str(value) or "''"
