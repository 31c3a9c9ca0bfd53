"""What was written in a config file or on the command line: a tree of texts that remember their place.

Nothing here knows what a key means. `jaxrlhf.config` gives the texts their types.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import yaml

COMMAND_LINE = "command line"

ONE_ARGUMENT = "put a space after each colon, and quotes around the whole: 'data.columns={prompt: question}'"
"""What to do where a list or mapping on the command line cannot be read."""

_MAX_BYTES = 1_000_000
_MAX_DEPTH = 20
_NULLS = ("", "~", "null", "Null", "NULL")
_INT = re.compile(r"[+-]?\d+(_\d+)*")
_FLOAT = re.compile(r"[+-]?(\d+(_\d+)*\.?\d*|\.\d+)([eE][+-]?\d+)?")


@dataclasses.dataclass
class Node:
    """One written value.

    Attributes:
        value: the text of a scalar, the entries of a mapping, or the items of a list.
        where: file and line, or the command line.
        quoted: True for a scalar that can only be a string.
        partial: True for a mapping made by overrides: what it does not name keeps its default.
    """

    value: str | dict[str, Node] | list[Node]
    where: str
    quoted: bool = False
    partial: bool = False

    @property
    def kind(self) -> str:
        """What it looks like: mapping, list, null, bool, int, float or string."""
        if not isinstance(self.value, str):
            return "mapping" if isinstance(self.value, dict) else "list"
        if self.quoted:
            return "string"
        if self.value in _NULLS:
            return "null"
        if self.value.lower() in ("true", "false"):
            return "bool"
        if _INT.fullmatch(self.value):
            return "int"
        return "float" if _FLOAT.fullmatch(self.value) else "string"

    def __str__(self) -> str:
        """Describes the value in an error message."""
        if not isinstance(self.value, str) or self.kind == "null":
            return f"a {self.kind}" if self.kind != "null" else "null"
        text = self.value[:80]
        return f"the {self.kind} {text!r}" if self.kind == "string" else f"the {self.kind} {text}"


def read(path: Path, problems: list[str]) -> Node:
    """Reads a YAML file whose root is a mapping.

    Args:
        path: a file of at most 1 MB.
        problems: takes one line for each key that is given twice.

    Returns:
        The root mapping; an empty file is an empty one.

    Raises:
        FileNotFoundError: `path` does not exist.
        ValueError: the file is too large, not UTF-8, not YAML, or uses anchors, tags or deep nesting.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file")
    size = path.stat().st_size
    if size > _MAX_BYTES:
        raise ValueError(f"{path}: {size} bytes, but a config has at most {_MAX_BYTES}; is this the right file?")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 at byte {error.start}; save the file as UTF-8") from error
    try:
        node = _parse(text, str(path), problems)
    except yaml.MarkedYAMLError as error:
        line = 1 if error.problem_mark is None else error.problem_mark.line + 1
        raise ValueError(f"{_place(str(path), line)}: not YAML: {error.problem}") from error
    except yaml.YAMLError as error:  # characters that YAML does not allow
        raise ValueError(f"{path}: not YAML: {error}") from error
    if not isinstance(node.value, dict):
        raise ValueError(f"{node.where}: found {node}, expected a mapping of keys to values")
    return node


def override(root: Node, text: str, problems: list[str]) -> None:
    """Changes one value of the tree.

    Args:
        root: a mapping; changed in place.
        text: `key=value`, the key dotted and entries of lists by number: `datasets.0.path=x`.
        problems: takes a line if `text` has another form or names an entry that is not there.
    """
    key, equals, value = text.partition("=")
    names = key.split(".")
    if not equals or not all(names):
        split = text[:1] in ("[", "{") or text[-1:] in (":", ",", "]", "}")
        piece = f"looks like a piece of a list or mapping that the shell has split; {ONE_ARGUMENT}"
        what = piece if split else "is not of the form key=value, such as ppo.clip_eps=0.2"
        problems.append(f"{COMMAND_LINE}: {text!r} {what}")
        return
    leaf = Node(value, COMMAND_LINE, quoted=value == "")
    for name in reversed(names[1:]):
        leaf = Node({name: leaf}, COMMAND_LINE, partial=True)
    _merge(root, names[0], leaf, "config", problems)


def container(node: Node, key: str, problems: list[str]) -> Node | None:
    """Reads the list or mapping that a command-line text such as `[a, b]` stands for.

    Args:
        node: any node.
        key: where it stands, for messages.
        problems: takes a line if the text begins as a list or mapping and cannot be read as one.

    Returns:
        The list or mapping, None if it cannot be read, and `node` itself if it is no such text.
    """
    if node.where != COMMAND_LINE or not isinstance(node.value, str) or node.value[:1] not in ("[", "{"):
        return node
    try:
        found = _parse(node.value, COMMAND_LINE, problems)
    except yaml.YAMLError:
        found = None
    if found is None or _lacks_spaces(found):
        problems.append(f"{COMMAND_LINE}: {key}: found {node}, which is no list or mapping; {ONE_ARGUMENT}")
        return None
    return found


def _lacks_spaces(node: Node) -> bool:
    """Whether a mapping in it was written like {prompt:question}, which to YAML is one long key without a value."""
    if isinstance(node.value, str):
        return False
    if isinstance(node.value, list):
        return any(_lacks_spaces(item) for item in node.value)
    return any(":" in key and item.kind == "null" or _lacks_spaces(item) for key, item in node.value.items())


def _merge(parent: Node, name: str, new: Node, key: str, problems: list[str]) -> None:
    """Puts `new` at `parent[name]`; a partial mapping goes into the mapping or list that is there."""
    if isinstance(parent.value, list):
        size = len(parent.value)
        if not name.isdecimal() or int(name) > size:
            problems.append(f"{new.where}: {key}.{name} is unknown; {key} has {size} entries, counted from 0")
            return
        old = parent.value[int(name)] if int(name) < size else None
        parent.value[int(name) : int(name) + 1] = [_merged(old, new, f"{key}.{name}", problems)]
    else:
        assert isinstance(parent.value, dict)
        parent.value[name] = _merged(parent.value.get(name), new, f"{key}.{name}", problems)


def _merged(old: Node | None, new: Node, key: str, problems: list[str]) -> Node:
    if old is None or not new.partial:
        return new
    whole = container(old, key, problems)
    if whole is None or isinstance(whole.value, str):
        return new
    assert isinstance(new.value, dict)
    for name, value in new.value.items():
        _merge(whole, name, value, key, problems)
    return whole


def _parse(text: str, source: str, problems: list[str]) -> Node:
    _refuse_tricks(text, source)
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    return Node({}, source) if root is None else _from_yaml(root, source, _place(source, 1), problems)


def _refuse_tricks(text: str, source: str) -> None:
    """Refuses aliases (which can grow without bound), tags and deep nesting before anything is built."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        where = _place(source, event.start_mark.line + 1)
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _MAX_DEPTH:
            raise ValueError(f"{where}: nested more than {_MAX_DEPTH} deep")
        if getattr(event, "anchor", None) is not None:
            raise ValueError(f"{where}: anchors and aliases (& and *) are not read; write the value out, or quote it")
        if getattr(event, "tag", None) is not None:
            raise ValueError(f"{where}: tags such as {event.tag!r} are not read; write a plain value, or quote it")


def _from_yaml(node: yaml.Node, source: str, where: str, problems: list[str]) -> Node:
    if isinstance(node, yaml.ScalarNode):
        return Node(node.value, where, quoted=node.style is not None)
    if isinstance(node, yaml.SequenceNode):
        items = [(item, _place(source, item.start_mark.line + 1)) for item in node.value]
        return Node([_from_yaml(item, source, at, problems) for item, at in items], where)
    entries: dict[str, Node] = {}
    for key, value in node.value:
        at = _place(source, key.start_mark.line + 1)
        if not isinstance(key, yaml.ScalarNode):
            raise ValueError(f"{at}: a key must be a name")
        if key.value in entries:
            problems.append(f"{at}: {key.value!r} is given twice, first at {entries[key.value].where}")
        entries[key.value] = _from_yaml(value, source, at, problems)
    return Node(entries, where)


def _place(source: str, line: int) -> str:
    return source if source == COMMAND_LINE else f"{source}:{line}"
