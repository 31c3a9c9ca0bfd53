from tests.report.runs import seen, started, write_run


def test_run_without_evaluation_is_told(tmp_path):
    (found,) = seen(write_run(tmp_path / "run", [{"step": 20, "loss": 1.0}]))
    assert found.startswith("Nothing was evaluated")


def test_run_without_metrics_is_not_said_to_lack_evaluations(tmp_path):
    assert seen(write_run(tmp_path / "run", [], events=[started("start", 0)])) == []


def test_lines_that_were_left_out_are_told(tmp_path):
    run = write_run(tmp_path / "run", [{"step": 20, "eval/loss": 1.0}])
    with (run / "metrics.jsonl").open("a") as file:
        file.write("rubbish\n" * 5)
    (found,) = seen(run)
    assert found.startswith(f"Left out 5 lines that could not be read: {run}/metrics.jsonl:2: not a line of JSON;")
    assert found.endswith("; and 2 more.")


def test_few_steps_of_a_finished_run_are_told(tmp_path):
    run = write_run(tmp_path / "run", [{"step": 3, "eval/loss": 1.0}])
    assert seen(run) == []
    (run / "export").mkdir()
    (run / "export" / "config.json").write_text("{}")
    assert seen(run) == ["The run had 3 steps, which teach next to nothing."]
