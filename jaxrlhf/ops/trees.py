"""Nested dicts of arrays: one laid over another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def overlay(base: Mapping[str, Any], part: Mapping[str, Any]) -> dict[str, Any]:
    """All of a tree, and what a second one adds to it or puts in place of it. Arrays stay what they are.

    Args:
        base: nested dict of arrays.
        part: nested dict of arrays with paths of its own, such as adapters beside the matrices of `base`; or the same
            paths, which then win.

    Returns:
        Nested dict.

    Raises:
        ValueError: if a path ends in one tree and goes on in the other.
    """
    together = dict(base)
    for name, value in part.items():
        if name not in base:
            together[name] = value
        elif isinstance(value, Mapping) and isinstance(base[name], Mapping):
            together[name] = overlay(base[name], value)
        elif isinstance(value, Mapping) or isinstance(base[name], Mapping):
            raise ValueError(f"{name!r} is an array in one tree and a dict in the other")
        else:
            together[name] = value
    return together
