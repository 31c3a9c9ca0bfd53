"""How far a command is with its answers: a bar on a terminal, else a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TextIO

import numpy as np

from jaxrlhf.commands.sampling import AnsweredBatch
from jaxrlhf.metrics import Progress
from jaxrlhf.sharding.distributed import is_main

BETWEEN_LINES_S = 10.0
"""Seconds between two lines while a batch is drawn; the end of a batch has one of its own."""

_BETWEEN_FRAMES_S = 0.1


class AnswerProgress:
    """Shows answers that are done, of all; time to go; tokens/s of drawing; those cut off and empty, batch by batch."""

    def __init__(self, total: int, *, stream: TextIO | None = None):
        """Shows nothing yet.

        Args:
            total: answers to all prompts.
            stream: where to; None means stderr.
        """
        where: TextIO = sys.stderr if stream is None else stream
        self._show = Progress(total, ("cut off", "empty"), main=is_main(), stream=where, unit="answers")
        self._pause = _BETWEEN_FRAMES_S if where.isatty() else BETWEEN_LINES_S
        self._done = self._tokens = self._cut = self._empty = 0  # of whole batches
        self._lengths: dict[int, int] = {}  # of the batch that is drawn: row of an answer -> its tokens so far
        self._ended: set[int] = set()
        self._seconds = 0.0  # of drawing whole batches
        self._since = self._shown = time.monotonic()

    def watch(self, row: int, tokens: np.ndarray, ended: bool) -> None:
        """Sees an answer while it is drawn, see `sampling.Watch`."""
        self._lengths[row] = len(tokens)
        if ended:
            self._ended.add(row)
        now = time.monotonic()
        if now - self._shown >= self._pause:
            self._report(now)

    def follow(self, batches: Iterable[AnsweredBatch]) -> Iterator[AnsweredBatch]:
        """Hands batches on, and shows after each how far it is; the time that the receiver takes is not drawing."""
        with self._show:
            self._since = time.monotonic()
            for batch in batches:
                self._seconds += time.monotonic() - self._since
                yield batch
                self._count(batch)
                self._since = time.monotonic()
                self._report(self._since)

    def _count(self, batch: AnsweredBatch) -> None:
        self._lengths, self._ended = {}, set()
        self._done += batch.lengths.size
        self._tokens += int(batch.lengths.sum())
        self._cut += int((~batch.terminated).sum())
        self._empty += sum(not text.strip() for texts in batch.completions for text in texts)

    def _report(self, now: float) -> None:
        self._shown = now
        seconds = self._seconds + now - self._since
        tokens = self._tokens + sum(self._lengths.values())
        rate = {"time/generate_tokens_per_s": tokens / seconds} if seconds else {}
        self._show.report(self._done + len(self._ended), {**rate, "cut off": self._cut, "empty": self._empty})
