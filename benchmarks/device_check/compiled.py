"""Programs of jax as contestants: compiled ahead of time, so that what they need is known before they run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax

from benchmarks.device_check.contest import LeftOut, Runner
from benchmarks.device_check.sheet import Row
from benchmarks.device_check.units import MIB

ROOM = 0.97
"""Share of the device's memory that a program may plan with."""


def ready(function: Callable[..., Any], *arguments: Any) -> Runner:
    """Compiles a function for arguments that it does not change, as a contestant.

    Raises:
        LeftOut: if it would not fit into the device's memory.
    """
    compiled = compile_for(function, *arguments)
    return Runner(lambda: compiled(*arguments), jax.block_until_ready, memory_of(compiled), peak_bytes)


def compile_for(function: Callable[..., Any], *arguments: Any, donate: Sequence[int] = ()) -> Any:
    """Compiles a function for arguments of these shapes.

    Raises:
        LeftOut: if the program, its arguments and its results would not fit into the device's memory.
    """
    compiled = jax.jit(function, donate_argnums=tuple(donate)).lower(*arguments).compile()
    plan: Any = compiled.memory_analysis()
    there = memory_stats().get("bytes_limit")
    needed = plan.argument_size_in_bytes + plan.temp_size_in_bytes
    needed += plan.output_size_in_bytes - plan.alias_size_in_bytes
    if there and needed > ROOM * there:
        raise LeftOut(f"memory: {needed / 2**30:.0f} GiB of {there / 2**30:.0f}")
    return compiled


def memory_of(compiled: Any) -> Row:
    """What the compiler planned: `temp_mib`."""
    return {"temp_mib": compiled.memory_analysis().temp_size_in_bytes / MIB}


def memory_stats() -> dict[str, int]:
    """What the device says of its memory; a CPU says nothing."""
    return jax.devices()[0].memory_stats() or {}


def peak_bytes() -> int | None:
    """The most device memory that this process had in use so far, in bytes; None where nobody knows."""
    return memory_stats().get("peak_bytes_in_use")
