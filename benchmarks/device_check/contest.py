"""Contestants measured in turns: prepare, warm up, then A B C A B C, and the median of each."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

from benchmarks.device_check.sheet import Row, Sheet
from benchmarks.device_check.units import MIB

T = TypeVar("T")

LEAST_S = 0.02
"""A measurement repeats a call until it takes as long as this, so that starting it does not count."""

MOST_CALLS = 20
FEWEST_ROUNDS = 3


class LeftOut(Exception):
    """A contestant that cannot take part here, and why: a package that is missing, memory that would not do."""


class Runner(NamedTuple):
    """A contestant that is ready.

    Attributes:
        start: puts the work in the device's queue and returns what to wait for.
        wait: returns when it is done.
        facts: what is known before any time is, e.g. `temp_mib`.
        peak: the most device memory so far, in bytes, or None where nobody knows; read after the warm-up.
    """

    start: Callable[[], Any]
    wait: Callable[[Any], Any]
    facts: Row = {}
    peak: Callable[[], int | None] = lambda: None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contestant:
    """What takes part.

    Attributes:
        row: what the row says of it: name, shape, dtype, implementation.
        prepare: compiles; may raise `LeftOut`.
        worth: seconds -> what they are worth, e.g. `tflops`.
    """

    row: Row
    prepare: Callable[[], Runner]
    worth: Callable[[float], Row]


class _Ready(NamedTuple):
    contestant: Contestant
    runner: Runner
    calls: int  # in one measurement
    known: Row


def hold(sheet: Sheet, contestants: Sequence[Contestant], *, rounds: int = 7) -> None:
    """Measures contestants in turns and writes a row for each.

    One that fails is written down as failed, one that no longer fits into the section's time as skipped; the others go
    on without it.

    Args:
        sheet: where rows go.
        contestants: who takes part.
        rounds: measurements of each; fewer if time runs out, but not under `FEWEST_ROUNDS`.
    """
    ready = [made for contestant in contestants if (made := _prepare(sheet, contestant)) is not None]
    for made, seconds in zip(ready, _take_turns(ready, rounds, sheet), strict=True):
        row = made.contestant.row
        if isinstance(seconds, Exception):
            sheet.add(**row, failed=_short(seconds))
            continue
        middle = statistics.median(seconds)
        spread = (max(seconds) - min(seconds)) / middle
        found = {"ms": 1e3 * middle, "rounds": len(seconds), "spread": spread, **made.contestant.worth(middle)}
        sheet.add(**row, **found, **made.known)


def attempt(sheet: Sheet, row: Row, work: Callable[[], T]) -> tuple[T, float] | None:
    """Does the work of a row, if it fits into the section's time.

    Returns:
        What came of it and the seconds it took; None where it was written down as skipped or failed.
    """
    if not sheet.clock.begin():
        sheet.add(**row, skipped="time")
        return None
    try:
        result = work()
    except LeftOut as reason:
        sheet.add(**row, skipped=str(reason))
    except Exception as error:  # of any library, out of memory among them: the row says what, the others go on
        sheet.add(**row, failed=_short(error))
    else:
        return result, sheet.clock.end()
    sheet.clock.end()
    return None


def _prepare(sheet: Sheet, contestant: Contestant) -> _Ready | None:
    """Prepares and warms up a contestant."""

    def work() -> tuple[Runner, int]:
        runner = contestant.prepare()
        return runner, _warm_up(runner)

    done = attempt(sheet, contestant.row, work)
    if done is None:
        return None
    (runner, calls), seconds = done
    peak = runner.peak()
    known = {**runner.facts, "peak_mib": None if peak is None else peak / MIB, "prepare_s": seconds}
    return _Ready(contestant, runner, calls, known)


def seconds_of(runner: Runner, calls: int) -> float:
    """Seconds of one call, as the mean of `calls` that are waited for together."""
    began = time.perf_counter()
    for _ in range(calls - 1):
        runner.start()
    runner.wait(runner.start())
    return (time.perf_counter() - began) / calls


def _warm_up(runner: Runner) -> int:
    """Runs twice, since the first call may still set something up, and returns how many calls a measurement takes."""
    seconds_of(runner, 1)
    return max(1, min(MOST_CALLS, round(LEAST_S / seconds_of(runner, 1))))


def _take_turns(ready: Sequence[_Ready], rounds: int, sheet: Sheet) -> list[list[float] | Exception]:
    """Seconds of each round of each contestant; of one that fails, its error."""
    found: list[list[float] | Exception] = [[] for _ in ready]
    for number in range(rounds):
        if number >= FEWEST_ROUNDS and not sheet.clock.left():
            break
        for place, made in enumerate(ready):
            seconds = found[place]
            if isinstance(seconds, Exception):
                continue
            try:
                seconds.append(seconds_of(made.runner, made.calls))
            except Exception as error:  # as in `attempt`
                found[place] = error
    return found


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
