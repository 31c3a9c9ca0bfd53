import subprocess
import sys

import pytest

from jaxrlhf import cli
from jaxrlhf.commands.config import ReportConfig
from tests.report.runs import write_ppo, write_run

LINES = [{"step": 1, "loss": 1.0}]


def _run(*arguments):
    return cli.main(["report", *map(str, arguments)])


def test_page_lies_in_the_folder_of_the_run(tmp_path, caplog):
    run = write_ppo(tmp_path / "ppo")
    assert _run(run) == 0
    assert (run / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert {path.name for path in run.iterdir()} >= {"report.html", "metrics.jsonl"}
    assert not list(run.glob("*.partial"))
    assert f"wrote {run}/report.html" in caplog.text


def test_page_of_a_folder_of_runs_lies_in_it(tmp_path):
    for name in ("sft", "dpo"):
        write_run(tmp_path / "demo" / name, LINES)
    assert _run(tmp_path / "demo") == 0
    assert "Comparison of 2 runs" in (tmp_path / "demo/report.html").read_text()


def test_several_runs_go_into_the_named_file(tmp_path):
    runs = [write_run(tmp_path / name, LINES) for name in ("a b", "c=d, [e]")]
    assert _run(*runs, f"out={tmp_path}/pages/both.html") == 0
    assert "c=d, [e]" in (tmp_path / "pages/both.html").read_text()


def test_page_is_written_anew(tmp_path):
    run = write_run(tmp_path / "run", LINES)
    assert _run(run) == _run(run) == 0


def test_lines_that_cannot_be_read_are_named(tmp_path, caplog):
    run = write_run(tmp_path / "run", LINES)
    with (run / "metrics.jsonl").open("a") as file:
        file.write("rubbish\n")
    assert _run(run) == 0
    assert f"left out {run}/metrics.jsonl:2: not a line of JSON" in caplog.text


def test_runs_that_are_left_out_are_named(tmp_path, caplog):
    write_run(tmp_path / "demo/good", LINES)
    write_run(tmp_path / "demo/young", [])
    assert _run(tmp_path / "demo") == 0
    assert f"left out {tmp_path}/demo/young/metrics.jsonl: found no line of metrics yet" in caplog.text


def test_file_is_no_run(tmp_path, capsys):
    run = write_run(tmp_path / "run", LINES)
    assert _run(run / "metrics.jsonl") == 2
    assert "metrics.jsonl is a file; expected a folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name a run: jaxrlhf report runs/ppo"),
        (["out=a.html"], "name a run: jaxrlhf report runs/ppo"),
        (["a", "b"], "out is not set; name a file for a report on several folders"),
        (["a", "out=metrics.jsonl"], "out=metrics.jsonl must end in .html"),
        (["none"], "none: there is no such folder; expected a folder that a trainer wrote"),
        (["none", "runs=[a]"], "'none' is not of the form key=value"),
    ],
)
def test_mistakes_are_told(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert _run(*arguments) == 2
    assert message in capsys.readouterr().err


def test_runs_must_be_named():
    with pytest.raises(ValueError, match="name a run: jaxrlhf report runs/ppo"):
        ReportConfig(runs=())


def test_help_says_how(capsys):
    assert _run("--help") == 0
    printed = capsys.readouterr().out
    assert printed.startswith("example: jaxrlhf report runs/ppo\n")
    assert "[RUN ...] [key=value ...]" in printed
    assert "  runs required  (list of string)" in printed


def test_it_needs_no_jax(tmp_path):
    run = write_run(tmp_path / "run", LINES)
    code = "import sys; from jaxrlhf import cli; cli.main(sys.argv[1:]); print({'jax', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code, "report", str(run)], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
