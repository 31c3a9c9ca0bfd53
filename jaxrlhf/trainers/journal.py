"""What a run writes down while it goes: a line of metrics for each window of steps, samples, progress on the screen."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxrlhf.metrics import MetricsWriter, PhaseClock, Progress
from jaxrlhf.ops.stats import merged_values
from jaxrlhf.trackers import Tracker
from jaxrlhf.types import Metrics

log = logging.getLogger(__name__)

SHOWN = (
    "loss",
    "accuracy",
    "rewards/margins",
    "objective/scores",
    "objective/kl",
    "reward",
    "kl",
    "completions/mean_length",
    "grad_norm",
    "eval/loss",
    "eval/accuracy",
    "eval/rewards/accuracies",
    "eval/objective/scores",
    "eval/objective/kl",
    "eval/reward",
)
"""The metrics that progress shows, of those that a method has."""

BINS = 20
"""Bins of a histogram of scores."""


class _Window(NamedTuple):
    """Steps that make one line: what they left on the device, and what the host knew and measured at their end."""

    step: int
    metrics: list[Metrics]
    scores: list[np.ndarray]
    known: dict[str, float]
    times: dict[str, float]


class Journal:
    """Collects the metrics of steps on the device and writes them a window at a time.

    A window ends every `log_every` steps and wherever something else is written or saved, so that a resumed run has the
    windows of an unbroken one. Metrics are read after the next step was dispatched: the device does not wait.

    Attributes:
        clock: measures phases; what it has measured goes into the line of the window.
        step: the last step that was taken.
        num_tokens: tokens of all steps so far, padding left out.
        last: the last value of each metric that was written.
    """

    def __init__(self, writer: MetricsWriter, log_every: int, *, main: bool) -> None:
        """Starts with an empty window.

        Args:
            writer: of the files.
            log_every: steps in a window.
            main: whether this process shows progress.
        """
        self.clock = PhaseClock()
        self.step = 0
        self.num_tokens = 0
        self.last: dict[str, float] = {}
        self._writer, self._log_every, self._main = writer, log_every, main
        self._trackers: Sequence[Tracker] = ()
        self._progress: Progress | None = None
        self._window: list[Metrics] = []
        self._scores: list[np.ndarray] = []
        self._known: dict[str, float] = {}
        self._ready: _Window | None = None

    def begin(self, total: int, start: int, num_tokens: int, trackers: Sequence[Tracker] = ()) -> None:
        """Starts to show progress, from step `start` of `total`; `num_tokens` were seen before.

        What goes into metrics.jsonl goes to the trackers too, which are closed with the journal.
        """
        self.step, self.num_tokens, self._trackers = start, num_tokens, trackers
        self._progress = Progress(total, SHOWN, start=start, main=self._main)
        self._progress.__enter__()

    def add(self, step: int, metrics: Metrics, known: Mapping[str, float], scores: np.ndarray | None = None) -> None:
        """Takes the metrics of a step that was just dispatched.

        Args:
            step: number of steps taken, this one included.
            metrics: as the step returned them, still on the device.
            known: numbers that the host knows, e.g. the learning rate; the last of a window are written.
            scores: [rows] of all answers of the step, NaN where nobody has an opinion; those of a window make a
                histogram.
        """
        self._write_ready()
        self._window.append(metrics)
        if scores is not None:
            self._scores.append(scores)
        self._known = dict(known)
        self.step = step
        if step % self._log_every == 0:
            self._close()

    def flush(self) -> None:
        """Ends the window and writes everything."""
        if self._window:
            jax.block_until_ready(self._window)  # so that the time of the last steps is all there
            self._close()
        self._write_ready()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Writes a line of numbers that are there already, such as an evaluation's."""
        self.flush()
        self._report(step, values)
        self.clock.collect()  # what an evaluation took is not the next window's

    def write_samples(self, step: int, samples: Sequence[Mapping[str, Any]]) -> None:
        """Appends answers to samples.jsonl."""
        self._writer.write_samples(step, samples)

    def close(self, *, failed: bool = False) -> None:
        """Writes what is left, and leaves the progress as it is; `failed` says that an error ended the run."""
        with contextlib.ExitStack() as closing:
            for tracker in self._trackers:
                closing.callback(tracker.close, failed=failed)
            if self._progress is not None:
                closing.callback(self._progress.close)
            try:
                self.flush()
            except Exception as error:
                if not failed:
                    raise
                log.warning("the last metrics are lost: %s", error)  # the error that ended the run is on its way up

    def __enter__(self) -> Journal:
        """Returns itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        """Writes what is left."""
        self.close(failed=kind is not None)

    def _close(self) -> None:
        self._ready = _Window(self.step, self._window, self._scores, self._known, self.clock.collect())
        self._window, self._scores = [], []

    def _write_ready(self) -> None:
        if self._ready is None:
            return
        (step, window, scores, known, times), self._ready = self._ready, None
        values = merged_values(window)
        tokens = values.pop("num_tokens")
        self.num_tokens += int(tokens)
        if "time/train_s" not in times:
            times["time/train_tokens_per_s"] = tokens / times["time/iteration_s"]
        if scores:
            self._writer.write_histograms(step, {"scores": histogram(np.concatenate(scores))})
        self._report(step, {**values, **known, "num_tokens": self.num_tokens, **times})

    def _report(self, step: int, values: Mapping[str, float]) -> None:
        self._writer.write(step, values)
        for tracker in self._trackers:
            tracker.write(step, values)
        self.last.update(values)
        if self._progress is not None:
            self._progress.report(step, values)


def histogram(scores: np.ndarray) -> dict[str, Any]:
    """Counts scores in bins of one width, from the lowest to the highest.

    Args:
        scores: [rows] floats, NaN where there is none.

    Returns:
        `edges`, one more than there are bins; `counts` of the bins, the upper edge belonging to the last one only;
        `unscored`, the number of NaN. Scores that are all equal lie in the middle of bins that are 1 wide together;
        without any score the bins reach from 0 to 1.
    """
    known = scores[np.isfinite(scores)].astype(np.float64)  # float32 cannot always part neighbours into so many bins
    counts, edges = np.histogram(known, BINS)
    return {"edges": edges.tolist(), "counts": counts.tolist(), "unscored": len(scores) - len(known)}
