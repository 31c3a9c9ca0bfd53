import pytest

from jaxrlhf.report.frontier import MOST_POINTS, Traded, frontier_chart, frontier_of
from jaxrlhf.trainers.grpo_config import GRPOConfig
from tests.report.runs import record, write_ppo, write_run


def test_evaluations_are_preferred(tmp_path):
    points = frontier_of(record(write_ppo(tmp_path / "run")))
    assert [point.step for point in points] == [0, 5, 10, 15, 20]
    assert (points[-1].kl, points[-1].score) == (9.0, 3.0)


def test_training_counts_where_there_are_no_two_evaluations(tmp_path):
    config = GRPOConfig(out="o", model="m", rewards=("r",))
    lines = [{"step": 0, "eval/reward": 0.0, "eval/objective/kl": 0.0}]
    lines += [{"step": step, "reward": 1.0 * step, "objective/kl": None if step == 2 else 4.0} for step in (1, 2, 3)]
    assert frontier_of(record(write_run(tmp_path / "run", lines, config=config))) == [(1, 4.0, 1.0), (3, 4.0, 3.0)]


def test_run_without_a_kl_has_no_point(tmp_path):
    assert frontier_of(record(write_run(tmp_path / "run", [{"step": 1, "reward": 1.0}]))) == []


def test_chart_is_over_the_root_of_the_kl():
    chart = frontier_chart([("ppo", [Traded(0, 0.0, 1.0), Traded(10, 9.0, 3.0)])])
    assert "ppo, step 10: score 3 at a KL of 9 nats" in chart
    assert ">√KL</text>" in chart and ">3</text>" in chart and ">4</text>" not in chart
    assert ">step 10</text>" in chart


def test_several_runs_have_a_colour_each_and_no_labels():
    chart = frontier_chart([("a", [Traded(1, 1.0, 1.0)]), ("b", []), ("c", [Traded(1, 4.0, 2.0)])])
    assert 'class="trail c0"' in chart and 'class="trail c2"' in chart and 'class="trail c1"' not in chart
    assert ">step 1</text>" not in chart


@pytest.mark.parametrize("length", [MOST_POINTS, 1000])
def test_points_are_few_and_end_with_the_last(length):
    chart = frontier_chart([("a", [Traded(step, step, step) for step in range(length)])])
    assert chart.count("<circle ") <= MOST_POINTS + 1
    assert f"a, step {length - 1:,}:" in chart


def test_kl_below_0_is_drawn_at_0():
    assert "KL of −0.1 nats" in frontier_chart([("a", [Traded(0, -0.1, 1.0)])])
