import dataclasses
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

import jaxrlhf
from jaxrlhf import cli


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
    monkeypatch.setitem(cli.COMMANDS, "sft", cli.Command(help="toy", config=lambda: ToyConfig, run=configs.append))
    return configs


def _within_the_package(monkeypatch, run):
    """Makes `jaxrlhf sft` call a function as if it stood in the package."""
    run.__code__ = run.__code__.replace(co_filename=cli.__file__)
    monkeypatch.setitem(cli.COMMANDS, "sft", cli.Command(help="toy", config=lambda: ToyConfig, run=run))


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


def test_unknown_command_is_suggested(capsys):
    assert cli.main(["pppo"]) == 2
    assert capsys.readouterr().err == "jaxrlhf: 'pppo' is no command; did you mean 'ppo'?\n"


def test_help_lists_the_commands(capsys):
    assert cli.main(["--help"]) == 0
    overview = capsys.readouterr().out
    assert all(f"  {name} " in overview for name in cli.COMMANDS)


def test_help_of_a_command_lists_its_keys(seen, capsys):
    assert cli.main(["sft", "--help"]) == 0
    assert "  rate = 0.5  (float)\n      how fast, positive.\n  name required  (string)" in capsys.readouterr().out
    assert seen == []


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"{jaxrlhf.__version__}\n"


def test_module_runs_as_a_program():
    result = subprocess.run([sys.executable, "-m", "jaxrlhf", "nothing"], capture_output=True, text=True)
    assert result.returncode == 2
    assert "the commands are sft, reward" in result.stderr
