"""The command line: `jaxrlhf COMMAND --config FILE key=value ...`.

Neither the list of commands nor the help of one imports jax; a command imports what it needs when it runs.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import difflib
import json
import logging
import os
import re
import shutil
import sys
import textwrap
import traceback
from collections.abc import Sequence
from pathlib import Path

import jaxrlhf
from jaxrlhf.command_table import COMMANDS, Command
from jaxrlhf.config import load
from jaxrlhf.config_docs import FieldDoc, describe
from jaxrlhf.programs import OFF, keep_programs
from jaxrlhf.trainers.config import TrainConfig

USER_ERROR = 2
"""Exit status after a mistake in a config, a file or an argument."""

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells count it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        arguments: without the program's name; None means those of the process.

    Returns:
        The exit status: 0; 2 after a user's mistake, or 130 after Ctrl-C, each told on stderr in place of a traceback.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_overview())
        return 0
    if arguments[0] == "--version":
        print(jaxrlhf.__version__)
        return 0
    name = arguments[0]
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"the commands are {', '.join(COMMANDS)}"
        print(f"jaxrlhf: {name!r} is no command; {hint}", file=sys.stderr)
        return USER_ERROR
    return _run(name, COMMANDS[name], arguments[1:])


def _run(name: str, command: Command, arguments: list[str]) -> int:
    if "-h" in arguments or "--help" in arguments:
        with contextlib.suppress(BrokenPipeError):  # a pager that was closed, or `head`
            print(_help(name, command), flush=True)
        return 0
    options = _parser(name, command).parse_intermixed_args(arguments)
    logging.basicConfig(format="%(message)s")
    logging.getLogger("jaxrlhf").setLevel(logging.INFO)  # others speak up when something is wrong
    try:
        config = load(command.config, options.config, _overrides(command, [*options.named, *options.overrides]))
        _check_named(config)
        if command.compiles:
            keep_programs(options.cache, os.environ)
        command.run(config)
    except (ValueError, TypeError, FileNotFoundError) as error:
        if options.traceback or not _is_our_message(error):
            raise
        print(f"jaxrlhf {name}: {error}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        resumes = issubclass(command.config, TrainConfig)
        hint = "; the same command goes on from the last checkpoint" if resumes else ""
        print(f"jaxrlhf {name}: interrupted{hint}", file=sys.stderr)
        return INTERRUPTED
    return 0


_NAMED = {"model": "required", "dataset": "required, or datasets", "runs": "required"}
"""What the help says in place of the default of a key that must be named, though it has one."""


def _check_named(config: object) -> None:
    """Refuses a training run without model or data, which only callers from Python can have in memory."""
    if not isinstance(config, TrainConfig):
        return
    problems = []
    if not config.model:
        problems.append("model is not set; name a Hugging Face folder, a hub id or the folder of a run")
    if not config.dataset and not config.datasets:
        problems.append("dataset is not set; name a file, a folder or a hub id, or several in datasets")
    if problems:
        raise ValueError("; ".join(problems))


def _is_our_message(error: Exception) -> bool:
    """Tells a complaint that this package wrote for its user from a mistake that surfaced within a library."""
    if isinstance(error, FileNotFoundError):
        return True
    if getattr(error, "__notes__", None):  # jax leaves one where it has cut its own frames out
        return False
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return Path(frame.f_code.co_filename).is_relative_to(Path(__file__).parent)


def _overrides(command: Command, given: Sequence[str]) -> list[str]:
    """Turns arguments without a key into the value of the one that takes them, unless it is given besides."""
    keyed = [text for text in given if re.match(r"[\w.]+=", text)]
    plain = [text for text in given if text not in keyed]
    if command.positional is None or not plain or any(text.startswith(f"{command.positional}=") for text in keyed):
        return list(given)
    return [f"{command.positional}={json.dumps(plain, ensure_ascii=False)}", *keyed]


def _parser(name: str, command: Command) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"jaxrlhf {name}", description=command.help, allow_abbrev=False)
    parser.add_argument("--config", metavar="FILE", help="YAML file with the keys below")
    parser.add_argument("--traceback", action="store_true", help="show where in the code a mistake was noticed")
    if command.compiles:
        where = f"keep compiled programs here for the next time, or nowhere: {OFF} (~/.cache/jaxrlhf/compiled)"
        parser.add_argument("--cache", metavar="FOLDER", help=where)
    if command.positional is None:
        parser.set_defaults(named=[])
    else:  # it takes all arguments; `_overrides` tells them apart
        one = command.positional.removesuffix("s").upper()
        parser.add_argument("named", nargs="*", metavar=one, help=f"goes into the list {command.positional}")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="changes one key, as in seed=1 or mesh.data=8"
    )
    return parser


def _overview() -> str:
    rows = "\n".join(f"  {name:10} {command.help}" for name, command in COMMANDS.items())
    return (
        "usage: jaxrlhf COMMAND [--config FILE] [key=value ...]\n\n"
        f"Learning from human preferences in JAX.\n\ncommands:\n{rows}\n\n"
        "jaxrlhf COMMAND --help lists the keys of a command. jaxrlhf --version prints the version."
    )


def _help(name: str, command: Command) -> str:
    fields = describe(command.config)
    trains = issubclass(command.config, TrainConfig)
    common = {field.name for field in dataclasses.fields(TrainConfig)} if trains else set()
    own = [field for field in fields if field.key.partition(".")[0] not in common]
    shared = [field for field in fields if field not in own]
    lines = [f"example: jaxrlhf {name} {command.example}", "", _parser(name, command).format_help().rstrip()]
    for title, section in ((f"keys of {name}:", own), ("keys of every training run:", shared)):
        if section:
            lines += ["", title, *(line for field in section for line in _entry(field))]
    return "\n".join(lines)


def _entry(field: FieldDoc) -> list[str]:
    """What the help says of one key."""
    value = "required" if field.default is None else _NAMED.get(field.key, f"= {field.default}")
    width = min(120, shutil.get_terminal_size().columns)
    text = textwrap.wrap(field.doc, width, initial_indent="      ", subsequent_indent="      ")
    return [f"  {field.key} {value}  ({field.type})", *text]
