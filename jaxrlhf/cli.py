"""The command line: `jaxrlhf COMMAND --config FILE key=value ...`.

Neither the list of commands nor the help of one imports jax; a command imports what it needs when it runs.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import logging
import shutil
import sys
import textwrap
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jaxrlhf

USER_ERROR = 2
"""Exit status after a mistake in a config, a file or an argument."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """One row of the command line.

    Attributes:
        help: one line for `jaxrlhf --help`.
        config: returns the config dataclass; imports no jax.
        run: runs the command on a config.
    """

    help: str
    config: Callable[[], type]
    run: Callable[[Any], object]


def _sft_config() -> type:
    from jaxrlhf.trainers.config import SFTConfig

    return SFTConfig


def _run_sft(config: Any) -> object:
    from jaxrlhf.trainers.sft import run

    return run(config)


def _reward_config() -> type:
    from jaxrlhf.trainers.config import RewardConfig

    return RewardConfig


def _run_reward(config: Any) -> object:
    from jaxrlhf.trainers.reward import run

    return run(config)


def _dpo_config() -> type:
    from jaxrlhf.trainers.config import DPOConfig

    return DPOConfig


def _run_dpo(config: Any) -> object:
    from jaxrlhf.trainers.dpo import run

    return run(config)


def _ppo_config() -> type:
    from jaxrlhf.trainers.config import PPOConfig

    return PPOConfig


def _run_ppo(config: Any) -> object:
    from jaxrlhf.trainers.ppo import run

    return run(config)


def _generate_config() -> type:
    from jaxrlhf.commands.config import GenerateConfig

    return GenerateConfig


def _run_generate(config: Any) -> object:
    from jaxrlhf.commands.generate import run

    return run(config)


def _evaluate_config() -> type:
    from jaxrlhf.commands.config import EvaluateConfig

    return EvaluateConfig


def _run_evaluate(config: Any) -> object:
    from jaxrlhf.commands.evaluate import run

    return run(config)


def _export_config() -> type:
    from jaxrlhf.commands.config import ExportConfig

    return ExportConfig


def _run_export(config: Any) -> object:
    from jaxrlhf.commands.export import run

    return run(config)


def _demo_config() -> type:
    from jaxrlhf.demo.config import DemoConfig

    return DemoConfig


def _run_demo(config: Any) -> object:
    from jaxrlhf.demo.command import run

    return run(config)


COMMANDS = {
    "sft": Command(help="train a model on demonstrations", config=_sft_config, run=_run_sft),
    "reward": Command(help="train a reward model on preferences", config=_reward_config, run=_run_reward),
    "dpo": Command(help="train a policy on preferences directly", config=_dpo_config, run=_run_dpo),
    "ppo": Command(help="train a policy against a reward with PPO", config=_ppo_config, run=_run_ppo),
    "generate": Command(help="sample answers to prompts", config=_generate_config, run=_run_generate),
    "evaluate": Command(help="measure a model", config=_evaluate_config, run=_run_evaluate),
    "export": Command(help="write a model in Hugging Face format", config=_export_config, run=_run_export),
    "demo": Command(help="the whole way on a laptop, with a report", config=_demo_config, run=_run_demo),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        arguments: without the program's name; None means those of the process.

    Returns:
        The exit status: 0, or 2 after a user's mistake, which is explained on stderr in place of a traceback.
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
    from jaxrlhf.config import load

    if "-h" in arguments or "--help" in arguments:
        print(_help(name, command))
        return 0
    options = _parser(name, command).parse_intermixed_args(arguments)
    logging.basicConfig(format="%(message)s")
    logging.getLogger("jaxrlhf").setLevel(logging.INFO)  # others speak up when something is wrong
    try:
        command.run(load(command.config(), options.config, options.overrides))
    except (ValueError, TypeError, FileNotFoundError) as error:
        if options.traceback or not _is_our_message(error):
            raise
        print(f"jaxrlhf {name}: {error}", file=sys.stderr)
        return USER_ERROR
    return 0


def _is_our_message(error: Exception) -> bool:
    """Tells a complaint that this package wrote for its user from a mistake that surfaced within a library."""
    if isinstance(error, FileNotFoundError):
        return True
    if getattr(error, "__notes__", None):  # jax leaves one where it has cut its own frames out
        return False
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return Path(frame.f_code.co_filename).is_relative_to(Path(__file__).parent)


def _parser(name: str, command: Command) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"jaxrlhf {name}", description=command.help, allow_abbrev=False)
    parser.add_argument("--config", metavar="FILE", help="YAML file with the keys below")
    parser.add_argument("--traceback", action="store_true", help="show where in the code a mistake was noticed")
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
    from jaxrlhf.config_docs import describe

    width = min(120, shutil.get_terminal_size().columns)
    lines = [_parser(name, command).format_help(), "keys:"]
    for field in describe(command.config()):
        value = "required" if field.default is None else f"= {field.default}"
        lines.append(f"  {field.key} {value}  ({field.type})")
        lines += textwrap.wrap(field.doc, width, initial_indent="      ", subsequent_indent="      ")
    return "\n".join(lines)
