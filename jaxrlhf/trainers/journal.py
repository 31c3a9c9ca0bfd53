"""What a run writes down while it goes: one line of metrics a window of steps, samples, and progress on the screen."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxrlhf.metrics import MetricsWriter, Progress
from jaxrlhf.ops.stats import Sum, reduce_stacked, values_of
from jaxrlhf.types import Metrics


class Journal:
    """Collects the metrics of steps on the device and writes them a window at a time.

    A window ends every `log_every` steps and wherever `flush` is called, which saving does, so that a resumed run has
    the windows of an unbroken one. Metrics are read after the next step was dispatched: the device does not wait.
    """

    def __init__(self, writer: MetricsWriter, progress: Progress, log_every: int) -> None:
        """Starts with an empty window.

        Args:
            writer: of metrics.jsonl and samples.jsonl.
            progress: the lines on the screen.
            log_every: steps in a window.
        """
        self._writer, self._progress, self._log_every = writer, progress, log_every
        self._window: list[Metrics] = []
        self._ready: tuple[int, list[Metrics], dict[str, float]] | None = None
        self._hosted: dict[str, float] = {}
        self._started = time.perf_counter()
        self.num_tokens = 0

    def add(self, step: int, metrics: Metrics, hosted: Mapping[str, float]) -> None:
        """Takes the metrics of a step that was just dispatched.

        Args:
            step: steps taken, this one included.
            metrics: as the step returned them, still on the device.
            hosted: numbers that the host knows, e.g. the learning rate; the last of a window are written. Those under
                `time/` are seconds and are summed.
        """
        self._write_ready()
        self._window.append(metrics)
        for name, value in hosted.items():
            self._hosted[name] = value + (self._hosted.get(name, 0.0) if name.startswith("time/") else 0.0)
        if step % self._log_every == 0:
            self._close(step)
            self._step = step
        self._step = step

    def flush(self) -> None:
        """Ends the window and writes everything."""
        if self._window:
            self._close(self._step)
        self._write_ready()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Writes a line of numbers that are there already, such as an evaluation's."""
        self.flush()
        self._writer.write(step, dict(values))
        self._progress.note(step, dict(values))

    def write_samples(self, step: int, samples: Sequence[Mapping[str, Any]]) -> None:
        """Appends answers to samples.jsonl."""
        self._writer.write_samples(step, samples)

    def _close(self, step: int) -> None:
        self._write_ready()
        self._ready = (step, self._window, self._hosted)
        self._window, self._hosted = [], {}

    def _write_ready(self) -> None:
        if self._ready is None:
            return
        (step, window, hosted), self._ready = self._ready, None
        merged = reduce_stacked(jax.tree.map(lambda *leaves: jnp.stack(leaves), *window))
        tokens = merged.pop("num_tokens", Sum(jnp.zeros(()))).value
        values = {name: float(value) for name, value in jax.device_get(values_of(merged)).items()}
        now = time.perf_counter()
        seconds, self._started = now - self._started, now
        self.num_tokens += int(tokens)
        values |= {"num_tokens": self.num_tokens, **hosted, "time/seconds": seconds}
        if tokens:
            values["time/tokens_per_second"] = float(tokens) / seconds
        self._writer.write(step, values)
        self._progress.update(step, values)
