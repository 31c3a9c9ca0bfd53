import dataclasses
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

import jaxrlhf
from jaxrlhf import cli
from jaxrlhf.trainers.config import SFTConfig, TrainConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class ToyConfig:
    """A toy.

    Attributes:
        rate: how fast, positive.
        name: whom for.
    """

    rate: float = 0.5
    name: str


@pytest.fixture
def seen(monkeypatch):
    configs = []
    monkeypatch.setitem(cli.COMMANDS, "sft", _toy(configs.append))
    return configs


def _toy(run, config=ToyConfig):
    return cli.Command(help="toy", example="name=you", config=config, run=run)


def _within_the_package(monkeypatch, run):
    """Makes `jaxrlhf sft` call a function as if it stood in the package."""
    run.__code__ = run.__code__.replace(co_filename=cli.__file__)
    monkeypatch.setitem(cli.COMMANDS, "sft", _toy(run))


def _raise(error):
    def run(config):
        raise error

    return run


def test_command_gets_its_config(seen, tmp_path):
    path = tmp_path / "toy.yaml"
    path.write_text("rate: 1e-3\nname: a\n")
    assert cli.main(["sft", "name=b", "--config", str(path), "rate=2e-3"]) == 0
    assert seen == [ToyConfig(rate=2e-3, name="b")]


def test_mistake_in_a_config_is_one_message_and_status_2(seen, capsys):
    assert cli.main(["sft", "rate=fast"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("jaxrlhf sft: command line: config.rate: found the string 'fast', expected float\n")
    assert "Traceback" not in captured.err


def test_config_file_that_is_not_there(seen, capsys):
    assert cli.main(["sft", "--config", "none.yaml"]) == 2
    assert capsys.readouterr().err == "jaxrlhf sft: none.yaml: there is no such file\n"


@pytest.mark.parametrize("error", [ValueError("data.jsonl:3: bad"), TypeError("bad"), FileNotFoundError("bad")])
def test_complaint_of_the_package_is_one_message(monkeypatch, capsys, error):
    _within_the_package(monkeypatch, _raise(error))
    assert cli.main(["sft", "name=a"]) == 2
    assert capsys.readouterr().err == f"jaxrlhf sft: {error}\n"


def test_traceback_is_there_for_the_asking(monkeypatch):
    _within_the_package(monkeypatch, _raise(ValueError("bad")))
    with pytest.raises(ValueError, match="bad"):
        cli.main(["sft", "name=a", "--traceback"])


@pytest.mark.parametrize(
    ("run", "error"),
    [
        (lambda config: jax.lax.add(jnp.ones(2), jnp.ones(3)), TypeError),
        (lambda config: jax.jit(jnp.dot)(jnp.ones(2), jnp.ones(3)), TypeError),
        (lambda config: json.loads(config.name), ValueError),
        (lambda config: 1 // 0, ZeroDivisionError),
    ],
)
def test_other_errors_keep_their_traceback(monkeypatch, run, error):
    _within_the_package(monkeypatch, run)
    with pytest.raises(error):
        cli.main(["sft", "name=a"])


@pytest.mark.parametrize(
    ("config", "arguments", "hint"),
    [
        (ToyConfig, ["name=a"], ""),
        (SFTConfig, ["out=o", "model=m", "dataset=d"], "; the same command goes on from the last checkpoint"),
    ],
)
def test_ctrl_c_is_one_line_and_status_130(monkeypatch, capsys, config, arguments, hint):
    monkeypatch.setitem(cli.COMMANDS, "sft", _toy(_raise(KeyboardInterrupt()), config))
    assert cli.main(["sft", *arguments]) == 130
    assert capsys.readouterr().err == f"jaxrlhf sft: interrupted{hint}\n"


TRAINERS = [name for name, command in cli.COMMANDS.items() if issubclass(command.config, TrainConfig)]
NO_MODEL = "model is not set; name a Hugging Face folder, a hub id or the folder of a run"
NO_DATASET = "dataset is not set; name a file, a folder or a hub id, or several in datasets"


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ([], f"{NO_MODEL}; {NO_DATASET}"),
        (["model=m"], NO_DATASET),
        (["dataset=d"], NO_MODEL),
        (["datasets=[{path: d}]"], NO_MODEL),
    ],
)
@pytest.mark.parametrize("name", TRAINERS)
def test_training_without_model_or_data_is_refused_before_it_starts(monkeypatch, capsys, name, given, problem):
    started = []
    command = dataclasses.replace(cli.COMMANDS[name], run=started.append)
    monkeypatch.setitem(cli.COMMANDS, name, command)
    assert cli.main([name, "out=o", *given]) == 2
    assert capsys.readouterr().err == f"jaxrlhf {name}: {problem}\n"
    assert started == []


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_example_is_a_command_that_starts(monkeypatch, name):
    started = []
    command = dataclasses.replace(cli.COMMANDS[name], run=started.append)
    monkeypatch.setitem(cli.COMMANDS, name, command)
    assert cli.main([name, *command.example.split()]) == 0
    assert len(started) == 1


def test_programs_of_a_command_are_kept_where_it_says(monkeypatch, seen, tmp_path):
    monkeypatch.setattr(cli.os, "environ", environ := {})
    assert cli.main(["sft", "name=a", "--cache", str(tmp_path)]) == 0
    assert environ["JAX_COMPILATION_CACHE_DIR"] == str(tmp_path)


def test_command_that_compiles_nothing_keeps_nothing(capsys):
    with pytest.raises(SystemExit):
        cli.main(["report", "runs", "--cache", "folder"])
    assert "unrecognized arguments: --cache" in capsys.readouterr().err


def test_unknown_command_is_suggested(capsys):
    assert cli.main(["pppo"]) == 2
    assert capsys.readouterr().err == "jaxrlhf: 'pppo' is no command; did you mean 'ppo'?\n"


def test_help_lists_the_commands(capsys):
    assert cli.main(["--help"]) == 0
    overview = capsys.readouterr().out
    assert all(f"  {name} " in overview for name in cli.COMMANDS)


def test_help_of_a_command_lists_its_keys(seen, capsys):
    assert cli.main(["sft", "--help"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("example: jaxrlhf sft name=you\n\nusage: jaxrlhf sft")
    assert "keys of sft:\n  rate = 0.5  (float)\n      how fast, positive.\n  name required  (string)" in out
    assert seen == []


def test_help_of_a_trainer_begins_with_what_is_its_own(capsys):
    assert cli.main(["grpo", "--help"]) == 0
    own, common = capsys.readouterr().out.split("keys of every training run:\n")
    keys = [line.split()[0] for line in own.partition("keys of grpo:")[2].splitlines() if line[:3].strip()]
    assert {key.partition(".")[0] for key in keys} >= {"rewards", "rollout", "grpo"}
    assert not {"out", "model", "optim.learning_rate"} & set(keys)
    assert "  rollout.answers = 8  (int)" in own
    assert "  model required  (string)" in common and "  dataset required, or datasets  (string or null)" in common


@pytest.mark.parametrize("name", ["sft", "generate"])
def test_help_has_no_empty_part(capsys, name):
    assert cli.main([name, "--help"]) == 0
    titles = [line for line in capsys.readouterr().out.splitlines() if line.startswith("keys of")]
    assert titles == ["keys of every training run:" if name == "sft" else "keys of generate:"]


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"{jaxrlhf.__version__}\n"


def test_module_runs_as_a_program():
    result = subprocess.run([sys.executable, "-m", "jaxrlhf", "nothing"], capture_output=True, text=True)
    assert result.returncode == 2
    assert "the commands are sft, reward" in result.stderr
