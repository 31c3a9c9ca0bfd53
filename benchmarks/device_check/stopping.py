"""Signals that ask this process to end, as an exception: it ends the processes that it started first."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(Exception):
    """This process was asked to end."""

    def __init__(self, number: int) -> None:
        """Says by which signal.

        Args:
            number: the signal's.
        """
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.status = 128 + number
        """What a shell calls a process that a signal ended."""


@contextlib.contextmanager
def stops_raised() -> Iterator[None]:
    """Within, a signal that asks to end raises `Stopped`, once; those that were ignored, as by nohup, still are."""

    def stop(number: int, frame: Any) -> None:
        del frame
        for each in before:  # another would interrupt the ending of processes
            signal.signal(each, signal.SIG_IGN)
        raise Stopped(number)

    before = {each: signal.getsignal(each) for each in SIGNALS if signal.getsignal(each) != signal.SIG_IGN}
    for each in before:
        signal.signal(each, stop)
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
