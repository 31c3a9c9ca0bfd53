from jaxrlhf.report.findings import findings_of
from jaxrlhf.trainers.config import SFTConfig
from tests.report.runs import record, seen, write_ppo, write_run


def test_nothing_is_found_in_a_run_that_goes_well(tmp_path):
    assert seen(write_ppo(tmp_path / "run")) == []


def test_problems_come_before_hints(tmp_path):
    lines = [{"step": step, "skipped": 1.0, "loss": 1.0} for step in range(1, 6)]
    found = findings_of(record(write_run(tmp_path / "run", lines, config=SFTConfig(out="o"))))
    assert [finding.level for finding in found] == ["problem", "hint"]
    assert all(finding.advice for finding in found)
