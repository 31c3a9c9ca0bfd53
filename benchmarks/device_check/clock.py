"""The time that a section has: rows that no longer fit are left out, and say so."""

from __future__ import annotations

import time
from collections.abc import Callable


class Clock:
    """Counts from when the section's process was started; holds how long its longest row took.

    A row fits if as much time is left as the longest row took so far: compiling is most of a row, and rows of a section
    are much alike.
    """

    def __init__(self, seconds: float, now: Callable[[], float] = time.monotonic) -> None:
        """Starts.

        Args:
            seconds: that rows may take in all.
            now: the time in seconds; for tests.
        """
        self._now = now
        self._end = now() + seconds
        self._longest = 0.0
        self._began = now()

    def left(self) -> float:
        """Seconds left, not less than 0."""
        return max(0.0, self._end - self._now())

    def begin(self) -> bool:
        """Begins a row, if it fits."""
        self._began = self._now()
        return self.left() > self._longest

    def end(self) -> float:
        """Ends the row and returns the seconds that it took."""
        taken = self._now() - self._began
        self._longest = max(self._longest, taken)
        return taken
