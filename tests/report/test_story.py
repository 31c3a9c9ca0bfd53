import pytest

from jaxrlhf.report.story import command_again, ending, recipe_path, resumed_at, surroundings
from jaxrlhf.trainers.config import SFTConfig
from tests.report.runs import record, started, write_ppo, write_run

LINES = [{"step": 10, "loss": 1.0}, {"step": 30, "loss": 0.5}]
END = {"event": "finished", "step": 30, "time": "2026-01-01T00:00:00+00:00"}


def _run(tmp_path, events=None, config=None):
    return record(write_run(tmp_path / "run", LINES, events=events, config=config))


def _stopped(why):
    return {"event": "stopped", "step": 35, "time": "2026-01-01T00:00:00+00:00", "why": why}


@pytest.mark.parametrize(
    ("events", "state", "sentence"),
    [
        ([started("start", 0), END], "finished", "Finished after 30 steps."),
        ([started("start", 0), _stopped("interrupted")], "interrupted", "Interrupted after step 35."),
        (
            [started("start", 0), _stopped("ValueError: no")],
            "failed",
            "Stopped by an error after step 35: ValueError: no",
        ),
        ([started("start", 0), _stopped("interrupted") | {"step": 0}], "interrupted", "Interrupted after step 30."),
        ([started("start", 0)], "open", "No end is recorded: it is still running, or was killed. Its last line"),
        ([_stopped("interrupted"), started("resume", 20)], "open", "No end is recorded"),
    ],
)
def test_end_is_that_of_the_last_event(tmp_path, events, state, sentence):
    end = ending(_run(tmp_path, events))
    assert end.state == state
    assert end.sentence.startswith(sentence)


def test_end_of_a_run_without_events_is_told_by_export_and_last_step(tmp_path):
    run = write_run(tmp_path / "run", LINES, config=SFTConfig(out="o", model="m", steps=100))
    assert ending(record(run)).sentence.startswith(
        "Not finished: step 30 of 100 was reached. Its last line of metrics is"
    )
    (run / "export").mkdir()
    (run / "export" / "config.json").write_text("{}")
    assert ending(record(run)) == ("finished", "Finished after 30 steps.")


@pytest.mark.parametrize(
    ("last", "sentence"),
    [
        (
            _stopped("ValueError: no") | {"step": 0},
            "Stopped by an error before the end of the first step: ValueError: no",
        ),
        (_stopped("interrupted") | {"step": 0}, "Interrupted before the end of the first step."),
        (
            started("start", 0),
            "No end is recorded: it is still running, or was killed. It has written no line of metrics yet.",
        ),
    ],
)
def test_end_of_a_run_without_metrics_is_told(tmp_path, last, sentence):
    assert ending(record(write_run(tmp_path / "run", [], events=[started("start", 0), last]))).sentence == sentence


def test_resumed_where_it_went_on_and_not_at_its_end(tmp_path):
    events = [started("start", 0), started("resume", 20), END, started("resume", 30), END]
    assert resumed_at(_run(tmp_path, events)) == [20]


def test_command_is_quoted_and_that_of_the_last_attempt(tmp_path):
    run = _run(tmp_path, [started("start", 0, "out=a", "seed=1"), started("resume", 20, "out=my runs/a", "steps=30")])
    assert command_again(run).line == "jaxrlhf ppo 'out=my runs/a' steps=30"
    assert command_again(run).hint == (
        "Once it no longer runs, the same command starts from the beginning: there is no checkpoint yet."
    )


@pytest.mark.parametrize(
    ("checkpoints", "expected"),
    [
        ([], "The same command starts from the beginning: there is no checkpoint yet."),
        ([9, 20], "The same command goes on from the checkpoint of step 20, and repeats steps 21 to 35."),
        ([34], "The same command goes on from the checkpoint of step 34, and repeats step 35."),
        ([35], "The same command goes on from the checkpoint of step 35."),
    ],
)
def test_interrupted_run_says_where_it_goes_on(tmp_path, checkpoints, expected):
    for step in checkpoints:
        (tmp_path / "run/checkpoints" / str(step)).mkdir(parents=True)
    run = _run(tmp_path, [started("start", 0), _stopped("interrupted")])
    assert command_again(run).hint == expected


def test_finished_run_says_what_the_same_command_does(tmp_path):
    assert command_again(_run(tmp_path, [started("start", 0), END])).hint.startswith("It has finished: with a larger")


def test_run_without_events_is_started_from_its_config(tmp_path):
    assert command_again(_run(tmp_path)).line == f"jaxrlhf sft --config {tmp_path}/run/config.yaml"


def test_run_on_rows_in_memory_has_no_command(tmp_path):
    assert command_again(_run(tmp_path, config=SFTConfig(out="o"))).line == ""


@pytest.mark.parametrize("form", ["--config {}", "--config={}"])
def test_recipe_is_named_by_the_command_if_it_is_there(tmp_path, form):
    path = tmp_path / "recipe.yaml"
    run = _run(tmp_path, [started("start", 0, *form.format(path).split(), "seed=2")])
    assert recipe_path(run) is None
    path.write_text("seed: 1\n")
    assert recipe_path(run) == path


def test_surroundings(tmp_path):
    assert surroundings(record(write_ppo(tmp_path / "run"))) == "8 x cpu · python 3.11.1 · jaxrlhf 0.1.0 · jax 0.10.2"
    several = started("start", 0) | {"processes": 2}
    assert surroundings(_run(tmp_path / "b", [several])).startswith("8 x cpu · 2 processes · python")
