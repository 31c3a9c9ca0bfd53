"""The command of a run, as its user typed it."""

import json
import subprocess
import sys
from pathlib import Path

from jaxrlhf.trainers.invocation import command

ROOT = Path(__file__).parents[2]
TELL = "import json; from jaxrlhf.trainers.invocation import command; print(json.dumps(command()))"


def test_the_installed_command_is_called_by_its_name(monkeypatch):
    monkeypatch.setattr("__main__.__spec__", None)
    monkeypatch.setattr("sys.argv", ["/somewhere/bin/jaxrlhf", "sft", "out=a b"])
    assert command() == ["jaxrlhf", "sft", "out=a b"]


def test_a_script_is_called_by_its_path_and_a_module_by_its_name(tmp_path):
    (tmp_path / "tell").mkdir()
    (tmp_path / "tell" / "__main__.py").write_text(TELL)
    (tmp_path / "script.py").write_text(TELL)
    assert _told(tmp_path, "script.py", "seed=1") == ["script.py", "seed=1"]
    assert _told(tmp_path, "-m", "tell", "seed=1") == ["python", "-m", "tell", "seed=1"]


def _told(folder, *arguments):
    environment = {"PYTHONPATH": f"{ROOT}:{folder}"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)
