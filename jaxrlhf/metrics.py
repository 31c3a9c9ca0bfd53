"""What a run reports on the host: files of JSON lines, and a line or a bar for whoever watches.

Values arrive as plain numbers. Names are paths; wall-clock values live under `time/`, so that two runs can be compared
without them.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

import rich.console
import rich.progress

_log = logging.getLogger(__name__)


class MetricsWriter:
    """Appends to `metrics.jsonl`, `events.jsonl`, `histograms.jsonl` and `samples.jsonl` of a run's folder.

    Each line is a JSON object with a step.

    Args:
        folder: the run's folder; created if it is not there.
        main: False in all processes but the first, which then write nothing.
    """

    def __init__(self, folder: str | Path, *, main: bool = True):
        """Opens nothing: each file is created by the first line that goes into it."""
        self._folder = Path(folder)
        self._main = main
        self._files: dict[str, TextIO] = {}

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Appends one line of metrics.

        Args:
            step: the step they describe.
            metrics: name -> int or float. What is not finite is written as null, its name in the list `nonfinite`.

        Raises:
            TypeError: a value is not a number.
        """
        for name, value in metrics.items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise TypeError(f"metric {name!r} is {value!r} of type {type(value).__name__}, expected a number")
        bad = [name for name, value in metrics.items() if not math.isfinite(value)]
        line = {"step": step} | {name: None if name in bad else value for name, value in metrics.items()}
        self._append("metrics.jsonl", [line | ({"nonfinite": bad} if bad else {})])

    def write_samples(self, step: int, samples: Iterable[Mapping[str, Any]]) -> None:
        """Appends one line for each sample: its step, then its own fields (prompt, response, reward ...)."""
        self._append("samples.jsonl", [{"step": step} | dict(sample) for sample in samples])

    def write_histograms(self, step: int, histograms: Mapping[str, Mapping[str, Any]]) -> None:
        """Appends one line of histograms by name, each with `edges`, `counts` and what else is told of it."""
        self._append("histograms.jsonl", [{"step": step} | dict(histograms)])

    def write_event(self, event: str, step: int, **details: Any) -> None:
        """Appends what happened to the run itself ("start", "resume", "finished", "stopped"), with the time in UTC."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        self._append("events.jsonl", [{"event": event, "step": step, "time": now} | details])

    def truncate(self, step: int) -> None:
        """Drops the lines after `step`, and a last line that a kill cut short. Call it when a run resumes at `step`.

        Events stay, since they happened.

        Raises:
            ValueError: a line is not a JSON object with a step; names file and line.
        """
        if not self._main:
            return
        self.close()
        for name in ("metrics.jsonl", "histograms.jsonl", "samples.jsonl"):
            _truncate(self._folder / name, step)
        _truncate(self._folder / "events.jsonl", sys.maxsize)

    def close(self) -> None:
        """Closes the files; a later line opens its file again."""
        for file in self._files.values():
            file.close()
        self._files.clear()

    def __enter__(self) -> MetricsWriter:
        """Returns itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Closes the files."""
        self.close()

    def _append(self, name: str, rows: list[dict[str, Any]]) -> None:
        if not self._main or not rows:
            return
        if name not in self._files:
            self._folder.mkdir(parents=True, exist_ok=True)
            # Half a surrogate pair in a sample has no UTF-8, but a backslash escape, which JSON reads back.
            self._files[name] = (self._folder / name).open("a", encoding="utf-8", errors="backslashreplace")
        file = self._files[name]
        file.writelines(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
        file.flush()  # a killed run leaves whole lines, but for the last


def _truncate(path: Path, step: int) -> None:
    if not path.exists():
        return
    # Bytes, since a kill can also cut a character of the last line in two.
    *lines, rest = path.read_bytes().split(b"\n")
    kept = [line for number, line in enumerate(lines, start=1) if _step_of(f"{path}:{number}", line) <= step]
    dropped = len(lines) - len(kept) + bool(rest)
    if dropped:
        _log.info("%s: dropped %d lines after step %d", path, dropped, step)
        temporary = path.with_suffix(".partial")
        temporary.write_bytes(b"".join(line + b"\n" for line in kept))
        os.replace(temporary, path)


def _step_of(where: str, line: bytes) -> int:
    try:
        return int(json.loads(line.decode())["step"])
    except (ValueError, KeyError, TypeError) as error:
        found = line[:80].decode(errors="replace")
        raise ValueError(f"{where}: expected a JSON object with a step, found {found!r}; mend the line") from error


class PhaseClock:
    """Measures the named phases of an iteration, such as generate, score and train."""

    def __init__(self) -> None:
        """Starts the first iteration."""
        self._seconds: dict[str, float] = {}
        self._tokens: dict[str, int] = {}
        self._start = time.monotonic()

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Adds the time of a `with` block to the phase; the block must wait for the device itself."""
        start = time.monotonic()
        yield
        self._seconds[name] = self._seconds.get(name, 0.0) + time.monotonic() - start

    def tokens(self, name: str, count: int) -> None:
        """Adds tokens to what the phase has processed."""
        self._tokens[name] = self._tokens.get(name, 0) + count

    def collect(self) -> dict[str, float]:
        """Ends the iteration.

        Returns:
            `time/<phase>_s`, `time/<phase>_tokens_per_s` where tokens were counted, and `time/iteration_s` of the whole
            since the last call.
        """
        now = time.monotonic()
        metrics = {f"time/{name}_s": seconds for name, seconds in self._seconds.items()}
        rates = {name: count / self._seconds[name] for name, count in self._tokens.items() if self._seconds.get(name)}
        metrics |= {f"time/{name}_tokens_per_s": rate for name, rate in rates.items()}
        metrics["time/iteration_s"] = now - self._start
        self._seconds, self._tokens, self._start = {}, {}, now
        return metrics


class Progress:
    """Shows how far a run is: a bar on a terminal, else one line a report.

    Args:
        total: the last step.
        show: names of the metrics to show, of those that a report brings.
        start: the step that the run starts after, not 0 when it resumes.
        main: False in all processes but the first, which then show nothing.
        stream: where to; None means stdout.
        unit: what is counted, if not steps.
    """

    def __init__(
        self,
        total: int,
        show: Iterable[str],
        *,
        start: int = 0,
        main: bool = True,
        stream: TextIO | None = None,
        unit: str = "step",
    ):
        """Draws nothing yet."""
        self._total = total
        self._show = tuple(show)
        self._main = main
        self._stream = sys.stdout if stream is None else stream
        self._unit = unit
        self._first: tuple[int, float] | None = None  # step and time of the first report, behind the compilation
        self._start = start
        self._bar = self._make_bar() if main and self._stream.isatty() else None

    def report(self, step: int, metrics: Mapping[str, float]) -> None:
        """Shows step, time to go, tokens/s of each phase that has them, and the metrics asked for."""
        if not self._main:
            return
        text = self._text(step, metrics)
        if self._bar is None:
            print(f"{self._unit} {step}/{self._total}  {text}", file=self._stream, flush=True)
        else:
            self._bar.update(self._bar.task_ids[0], completed=step, text=text)

    def close(self) -> None:
        """Leaves the bar as it is."""
        if self._bar is not None:
            self._bar.stop()

    def __enter__(self) -> Progress:
        """Draws the bar, if there is one."""
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        """Leaves the bar as it is."""
        self.close()

    def _text(self, step: int, metrics: Mapping[str, float]) -> str:
        now = time.monotonic()
        first_step, first_time = self._first = self._first or (step, now)
        parts = []
        if step > first_step:
            parts.append("eta " + _duration((now - first_time) / (step - first_step) * (self._total - step)))
        rates = {name: value for name, value in metrics.items() if name.endswith("_tokens_per_s")}
        parts += [f"{_phase_of(name)} {value:,.0f} tok/s" for name, value in rates.items()]
        parts += [f"{name} {metrics[name]:.4g}" for name in self._show if name in metrics]
        return "  ".join(parts)

    def _make_bar(self) -> rich.progress.Progress:
        columns = (rich.progress.BarColumn(), rich.progress.MofNCompleteColumn())
        text = rich.progress.TextColumn("{task.fields[text]}", markup=False)  # names and values are not markup
        bar = rich.progress.Progress(*columns, text, console=rich.console.Console(file=self._stream))
        bar.add_task("", total=self._total, completed=self._start, text="")
        return bar


def _phase_of(name: str) -> str:
    return name.removeprefix("time/").removesuffix("_tokens_per_s")


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
