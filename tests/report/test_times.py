from jaxrlhf.report.times import phases_of, seconds_a_step
from tests.report.runs import record, write_run


def test_phases_are_added_up_over_lines(tmp_path):
    lines = [
        {
            "step": step,
            "time/generate_s": 1.0 * step,
            "time/train_s": 2.0,
            "time/generate_tokens_per_s": 100.0,
            "time/iteration_s": 5.0,
        }
        for step in (1, 2)
    ]
    assert phases_of(record(write_run(tmp_path / "run", lines))) == [
        ("generate", 3.0, 100.0),
        ("train", 4.0, None),
        ("other", 3.0, None),
    ]


def test_pace_is_that_of_the_median_line(tmp_path):
    lines = [
        {"step": step, "time/train_tokens_per_s": rate, "time/iteration_s": seconds}
        for step, rate, seconds in ((10, 5.0, 300.0), (20, 400.0, 20.0), (25, 390.0, 11.0))
    ]
    run = record(write_run(tmp_path / "run", lines))
    assert phases_of(run) == [("train", 331.0, 390.0)]
    assert seconds_a_step(run) == 2.2  # of 30, 2 and 2.2


def test_run_without_times_has_no_phases(tmp_path):
    assert phases_of(record(write_run(tmp_path / "run", [{"step": 1, "loss": 1.0, "time/iteration_s": None}]))) == []
    assert seconds_a_step(record(tmp_path / "run")) is None
