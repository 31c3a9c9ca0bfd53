"""The files in `configs/`: each loads, and the commands in its header are commands."""

import re
import shlex
from pathlib import Path

import pytest

from jaxrlhf.cli import COMMANDS
from jaxrlhf.config import load
from jaxrlhf.rewards.functions import load_reward

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "configs").rglob("*.yaml"))
STORY_MODEL = "tests/assets/stories260k-llama"

# The names on the hub that the files take; somebody has looked them up. Models are of families that we have.
MODELS = {"HuggingFaceTB/SmolLM2-135M", "Qwen/Qwen2.5-0.5B-Instruct"}
DATA = {
    "roneneldan/TinyStories", "vicgalle/alpaca-gpt4", "Anthropic/hh-rlhf", "trl-lib/kto-mix-14k", "trl-lib/Capybara",
    "trl-lib/ultrafeedback_binarized", "trl-lib/ultrafeedback-prompt",
}  # fmt: skip


def header(path: Path) -> list[str]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return [line.removeprefix("#").strip() for line in lines[: next(n for n, x in enumerate(lines) if x[:1] != "#")]]


def commands(path: Path) -> list[list[str]]:
    """The words of the commands in the header, without the `jaxrlhf`."""
    return [shlex.split(line)[1:] for line in header(path) if line.startswith("jaxrlhf ")]


def parametrized(paths: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("path", paths, ids=lambda path: str(path.relative_to(ROOT / "configs")))


def test_every_method_has_a_file():
    assert {path.parent.name for path in FILES} == {"sft", "reward", "dpo", "kto", "ppo", "grpo", "rejection"}


@parametrized(FILES)
def test_a_file_loads_as_the_config_of_its_method(path: Path):
    config = load(COMMANDS[path.parent.name].config, path)
    others = {load(COMMANDS[file.parent.name].config, file).out for file in FILES if file != path}
    assert config.out.startswith("runs/") and config.model in MODELS | others
    assert config.dataset in DATA or (config.dataset.endswith(".jsonl") and "/" not in config.dataset)


@parametrized(FILES)
def test_a_file_opens_with_its_command_hardware_time_and_metric(path: Path):
    method, option, file, *overrides = commands(path)[0]
    assert (method, option, ROOT / file) == (path.parent.name, "--config", path)
    config = load(COMMANDS[method].config, path, overrides)
    assert config.model == STORY_MODEL and (ROOT / config.model / "config.json").exists()
    text = " ".join(header(path))
    assert re.search(r"Hardware and time: .*minute.* Metric: ", text)


@parametrized([path for path in FILES if len(commands(path)) > 1])
def test_what_else_the_header_runs_is_a_command_too(path: Path):
    for method, *overrides in commands(path)[1:]:
        load(COMMANDS[method].config, None, overrides)


@parametrized(sorted((ROOT / "configs" / "ppo").glob("*.yaml")))
def test_its_rewards_are_functions(path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    config = load(COMMANDS["ppo"].config, path)
    functions = [load_reward(spec) for spec in config.rewards]
    assert functions or config.reward_model
    for function in functions:
        assert function(["One day"], [" she had fun, fun with a friend."]) == [2.0]
