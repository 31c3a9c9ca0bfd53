import io
import json
import math
from datetime import UTC, datetime, timedelta

import pytest

from jaxrlhf.metrics import MetricsWriter, PhaseClock, Progress


def _lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_line_has_step_first_and_numbers(tmp_path):
    with MetricsWriter(tmp_path / "run") as writer:
        writer.write(3, {"loss": 0.5, "count": 7})
    assert (tmp_path / "run/metrics.jsonl").read_text() == '{"step": 3, "loss": 0.5, "count": 7}\n'


def test_nonfinite_values_are_null_and_named(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write(1, {"loss": math.nan, "kl": -math.inf, "reward": 1.0})
    assert _lines(tmp_path / "metrics.jsonl") == [
        {"step": 1, "loss": None, "kl": None, "reward": 1.0, "nonfinite": ["loss", "kl"]}
    ]


@pytest.mark.parametrize("value", [True, "0.5", None])
def test_value_that_is_no_number_is_named(tmp_path, value):
    with pytest.raises(TypeError, match=r"metric 'loss' is .* expected a number"):
        MetricsWriter(tmp_path).write(1, {"loss": value})


def test_line_is_on_disk_before_close(tmp_path):
    writer = MetricsWriter(tmp_path)
    writer.write(1, {"loss": 1.0})
    assert len(_lines(tmp_path / "metrics.jsonl")) == 1
    writer.close()


def test_resumed_files_equal_unbroken_ones(tmp_path):
    def run(folder, steps, resume=None):
        with MetricsWriter(folder) as writer:
            if resume is not None:
                writer.truncate(resume)
            for step in steps:
                writer.write(step, {"loss": 1 / (step + 1)})
                writer.write_histograms(step, {"scores": {"edges": [0, step], "counts": [1]}})
                writer.write_samples(step, [{"prompt": "a\u2028b", "response": f"{step}-{row}"} for row in range(2)])

    run(tmp_path / "unbroken", range(6))
    run(tmp_path / "broken", range(4))
    with (tmp_path / "broken/metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')  # killed while writing
    run(tmp_path / "broken", range(3, 6), resume=2)
    for name in ("metrics.jsonl", "histograms.jsonl", "samples.jsonl"):
        assert (tmp_path / "broken" / name).read_bytes() == (tmp_path / "unbroken" / name).read_bytes()


def test_events_stay_but_for_one_that_a_kill_cut_short(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write_event("start", 0, command=["jaxrlhf", "sft"])
        writer.write_event("stopped", 7, why="ValueError: no")
        with (tmp_path / "events.jsonl").open("a") as file:
            file.write('{"event": "star')
        writer.truncate(3)
        writer.write_event("resume", 3)
    lines = _lines(tmp_path / "events.jsonl")
    times = [datetime.fromisoformat(line.pop("time")) for line in lines]
    assert lines == [
        {"event": "start", "step": 0, "command": ["jaxrlhf", "sft"]},
        {"event": "stopped", "step": 7, "why": "ValueError: no"},
        {"event": "resume", "step": 3},
    ]
    assert times[0].utcoffset() == timedelta(0)
    assert abs(times[0] - datetime.now(UTC)) < timedelta(minutes=5)


def test_nothing_to_write_makes_no_file(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write_samples(1, [])
    assert list(tmp_path.iterdir()) == []


def test_broken_line_in_the_middle_is_an_error(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\nrubbish\n{"step": 2}\n')
    with pytest.raises(ValueError, match=r"metrics.jsonl:2: expected a JSON object with a step, found 'rubbish"):
        MetricsWriter(tmp_path).truncate(1)


def test_last_line_cut_within_a_character_is_dropped(tmp_path):
    path = tmp_path / "samples.jsonl"
    whole = '{"step": 1, "response": "é"}\n'.encode()
    path.write_bytes(whole + '{"step": 2, "response": "é'.encode()[:-1])
    MetricsWriter(tmp_path).truncate(2)
    assert path.read_bytes() == whole


@pytest.mark.parametrize("line", [b'{"step": 1, "response": "\xc3"}', b'{"step": null}', b"[1]", b"1", b'{"loss": 1}'])
def test_whole_line_that_is_no_object_with_a_step_is_an_error(tmp_path, line):
    (tmp_path / "samples.jsonl").write_bytes(line + b"\n")
    with pytest.raises(ValueError, match=r"samples.jsonl:1: expected a JSON object with a step, found"):
        MetricsWriter(tmp_path).truncate(1)


def test_sample_with_half_a_surrogate_is_written(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write_samples(1, [{"response": "é\udc80"}])
    assert _lines(tmp_path / "samples.jsonl") == [{"step": 1, "response": "é\udc80"}]


def test_other_processes_write_nothing(tmp_path):
    with MetricsWriter(tmp_path, main=False) as writer:
        writer.write(1, {"loss": 1.0})
        writer.write_event("start", 0)
        writer.write_histograms(1, {"scores": {"edges": [0, 1], "counts": [1]}})
        writer.truncate(0)
    assert list(tmp_path.iterdir()) == []


def test_clock_reports_seconds_and_rates_and_starts_over(monkeypatch):
    times = iter([0.0, 1.0, 3.0, 4.0, 8.0, 9.0])
    monkeypatch.setattr("jaxrlhf.metrics.time.monotonic", lambda: next(times))
    clock = PhaseClock()
    with clock.phase("generate"):
        clock.tokens("generate", 50)
    with clock.phase("train"):
        pass
    assert clock.collect() == {
        "time/generate_s": 2.0,
        "time/train_s": 4.0,
        "time/generate_tokens_per_s": 25.0,
        "time/iteration_s": 9.0,
    }
    times = iter([12.0])
    assert clock.collect() == {"time/iteration_s": 3.0}


def test_progress_prints_a_line_with_the_time_to_go(monkeypatch):
    times = iter([100.0, 110.0])
    monkeypatch.setattr("jaxrlhf.metrics.time.monotonic", lambda: next(times))
    stream = io.StringIO()
    with Progress(50, ("loss", "kl"), stream=stream) as progress:
        progress.report(10, {"loss": 0.25, "other": 1.0})
        progress.report(20, {"loss": 0.125, "time/train_tokens_per_s": 1234.5})
    assert stream.getvalue().splitlines() == [
        "step 10/50  loss 0.25",
        "step 20/50  eta 0:30  train 1,234 tok/s  loss 0.125",
    ]


def test_progress_names_what_it_counts():
    stream = io.StringIO()
    with Progress(4, ("loss",), stream=stream, unit="answers") as progress:
        progress.report(2, {"loss": 0.5})
    assert stream.getvalue() == "answers 2/4  loss 0.5\n"


def test_progress_draws_a_bar_on_a_terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    stream = io.StringIO()
    stream.isatty = lambda: True
    with Progress(4, ("loss",), stream=stream) as progress:
        progress.report(2, {"loss": 0.5})
    assert "2/4" in stream.getvalue()
    assert "loss 0.5" in stream.getvalue()


def test_progress_of_other_processes_is_silent():
    stream = io.StringIO()
    with Progress(4, ("loss",), main=False, stream=stream) as progress:
        progress.report(2, {"loss": 0.5})
    assert stream.getvalue() == ""
