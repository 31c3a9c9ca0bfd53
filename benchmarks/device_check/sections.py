"""The sections by name: which parts each has, and how long they may take."""

from __future__ import annotations

from typing import Literal, NamedTuple

Platform = Literal["gpu", "tpu"]

GRACE_S = 30.0
"""A part is stopped this long after the time that its rows may take."""


class Part(NamedTuple):
    """What runs in a process of its own.

    Attributes:
        name: see `part.PARTS`.
        seconds: after which it is stopped; its rows may take `GRACE_S` less.
        platforms: where it runs.
    """

    name: str
    seconds: float
    platforms: tuple[Platform, ...] = ("gpu", "tpu")

    @property
    def row_seconds(self) -> float:
        """What its rows may take."""
        return max(self.seconds - GRACE_S, self.seconds / 2)


SECTIONS: dict[str, tuple[Part, ...]] = {
    "correctness": (Part("oracle", 120), Part("suite", 120)),
    "peaks": (Part("peaks", 90),),
    "head": (Part("head", 240),),
    "train": (Part("train", 150), Part("train_torch", 90, ("gpu",))),
    "generate": (Part("generate", 130), Part("generate_torch", 110, ("gpu",))),
    "iterations": (Part("dpo", 60, ("gpu",)), Part("grpo", 80, ("gpu",)), Part("ppo", 100, ("gpu",))),
}
"""In the order in which they run; no section takes more than four minutes."""

DIVIDED = ("head", "train", "generate")
"""Sections that divide by what `peaks` measured."""


def sections_of(platform: Platform) -> dict[str, tuple[Part, ...]]:
    """The sections of a platform, with the parts that it has."""
    found = {name: tuple(part for part in parts if platform in part.platforms) for name, parts in SECTIONS.items()}
    return {name: parts for name, parts in found.items() if parts}


def choose(platform: Platform, names: list[str], *, peaks_known: bool) -> list[str]:
    """The sections to run, in order.

    Args:
        platform: whose.
        names: those that are asked for; none means all.
        peaks_known: whether the peaks were measured before; if not, they are before they are divided by.

    Raises:
        ValueError: for a name that is no section.
    """
    there = sections_of(platform)
    unknown = [name for name in names if name not in there]
    if unknown:
        raise ValueError(f"{', '.join(unknown)}: no such section of {platform}_check; there are {', '.join(there)}")
    wanted = set(names or there)
    if not peaks_known and wanted.intersection(DIVIDED):
        wanted.add("peaks")
    return [name for name in there if name in wanted]
