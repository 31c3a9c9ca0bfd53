"""How a run went: whether it ended and how, where it was resumed, and the command that began it."""

from __future__ import annotations

import datetime
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from jaxrlhf.report.folder import METHODS, RunRecord
from jaxrlhf.report.numbers import plural

State = Literal["finished", "interrupted", "failed", "open", "unknown"]

SHOWN_STATES: Mapping[State, str] = {
    "finished": "finished",
    "interrupted": "interrupted",
    "failed": "stopped by an error",
    "open": "running or killed",
    "unknown": "not finished",
}
"""What the page says of a state."""


class Ending(NamedTuple):
    """How a run ended: its state, and a sentence."""

    state: State
    sentence: str


class Command(NamedTuple):
    """How to run it again: the line for a shell, empty if there is none, and what it does."""

    line: str
    hint: str


def ending(run: RunRecord) -> Ending:
    """Tells from the last event how a run ended; of a run without events, from its export and its last step."""
    if not run.events:
        return _ending_without_events(run)
    last, step = run.events[-1], _steps_taken(run)
    if last["event"] == "finished":
        return Ending("finished", f"Finished after {plural(step, 'step')}.")
    if last["event"] == "stopped":
        why = str(last.get("why", "it does not say why"))
        when = f"after step {step:,}" if step else "before the end of the first step"
        if why == "interrupted":
            return Ending("interrupted", f"Interrupted {when}.")
        return Ending("failed", f"Stopped by an error {when}: {why}")
    return Ending("open", f"No end is recorded: it is still running, or was killed. {_last_heard(run)}")


def resumed_at(run: RunRecord) -> list[int]:
    """The steps that the run went on from after a break; being called again at its end is none."""
    return sorted(
        {event["step"] for event in run.events if event["event"] == "resume" and event["step"] < run.last_step}
    )


def command_of(run: RunRecord) -> list[str]:
    """The arguments of the process that last worked on the run; none if they were not recorded."""
    for event in reversed(run.events):
        command = event.get("command")
        if isinstance(command, list) and command:
            return [str(argument) for argument in command]
    return []


def command_again(run: RunRecord) -> Command:
    """The command that runs it again, and what happens then."""
    given = command_of(run)
    if given:
        line = shlex.join(given)
    elif run.config.get("model") and (run.config.get("dataset") or run.config.get("datasets")):
        line = shlex.join(["jaxrlhf", METHODS[run.method].command, "--config", str(run.folder / "config.yaml")])
    else:
        return Command(
            "",
            "Its model or its data came from memory: run the Python program that called the trainer again. "
            + goes_on_from(run),
        )
    return Command(line, goes_on_from(run))


def goes_on_from(run: RunRecord) -> str:
    """Where the same command goes on, and what it repeats."""
    state, step, taken = ending(run).state, run.checkpoint, _steps_taken(run)
    if state == "finished":
        return "It has finished: with a larger `steps` it goes on, with another `out` it starts anew."
    once = "Once it no longer runs, the same command" if state == "open" else "The same command"
    if step is None:
        return f"{once} starts from the beginning: there is no checkpoint yet."
    if step >= taken:
        return f"{once} goes on from the checkpoint of step {step:,}."
    repeated = f"step {taken:,}" if taken == step + 1 else f"steps {step + 1:,} to {taken:,}"
    return f"{once} goes on from the checkpoint of step {step:,}, and repeats {repeated}."


def recipe_path(run: RunRecord) -> Path | None:
    """The file that the recorded command names with --config, if it is still there."""
    given = command_of(run)
    named = [value for flag, value in zip(given, given[1:], strict=False) if flag == "--config"]
    named += [argument.removeprefix("--config=") for argument in given if argument.startswith("--config=")]
    return Path(named[-1]) if named and Path(named[-1]).is_file() else None


def surroundings(run: RunRecord) -> str:
    """Devices, processes and versions, as far as they were recorded."""
    starts = [event for event in run.events if event["event"] in ("start", "resume")]
    if not starts:
        return ""
    last = starts[-1]
    versions = last.get("versions")
    parts = [str(last["devices"])] if last.get("devices") else []
    parts += [f"{last['processes']} processes"] if last.get("processes", 1) != 1 else []
    parts += [f"{name} {version}" for name, version in versions.items()] if isinstance(versions, dict) else []
    return " · ".join(parts)


def _steps_taken(run: RunRecord) -> int:
    """The last step that any record tells of: a run that was stopped knows more than its last line of metrics."""
    return max(run.last_step, run.events[-1]["step"] if run.events else 0)


def _ending_without_events(run: RunRecord) -> Ending:
    steps = run.config.get("steps")
    if run.exported:
        return Ending("finished", f"Finished after {plural(run.last_step, 'step')}.")
    of = f" of {steps:,}" if isinstance(steps, int) else ""
    return Ending("unknown", f"Not finished: step {run.last_step:,}{of} was reached. {_last_heard(run)}")


def _last_heard(run: RunRecord) -> str:
    if run.written is None:
        return "It has written no line of metrics yet."
    when = datetime.datetime.fromtimestamp(run.written, tz=datetime.UTC)
    return f"Its last line of metrics is of step {run.last_step:,}, written on {when:%Y-%m-%d at %H:%M} UTC."
