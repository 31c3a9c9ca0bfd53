import pytest

from jaxrlhf.report.findings import findings_of
from jaxrlhf.trainers.config import DPOConfig, SFTConfig
from jaxrlhf.trainers.grpo_config import GRPOConfig
from tests.report.runs import histogram, ppo_lines, record, write_ppo, write_run


def _seen(run):
    return [finding.seen for finding in findings_of(record(run))]


def _changed(tmp_path, **changes):
    """What is found in a run that goes well but for some metrics: a value, or a function of the step."""
    lines = ppo_lines(20)
    for line in lines:
        for name, value in changes.items():
            key = name.replace("__", "/")
            if "objective/kl" in line:  # of training
                line[key] = value(line["step"]) if callable(value) else value
    return _seen(write_ppo(tmp_path / "run", metrics=lines))


def test_nothing_is_found_in_a_run_that_goes_well(tmp_path):
    assert _seen(write_ppo(tmp_path / "run")) == []


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"completions__clipped_ratio": 0.95}, "95 % of the answers are cut off"),
        ({"frac_reward_zero_std": 0.97}, "In 97 % of the groups all rewards are equal"),
        ({"objective__kl": 30.0}, "The KL to the reference runs away: 30 nats an answer, 1.5"),
        ({"objective__kl": lambda step: 0.03 * 1.35**step}, "The KL to the reference runs away: "),
        ({"objective__kl": -2.0}, "The KL to the reference is negative: −2 nats"),
        ({"policy__entropy_avg": lambda step: 2.0 if step < 5 else 0.1}, "The policy has lost its entropy: 2 nats"),
        ({"policy__clipfrac_avg": 0.45}, "45 % of the tokens are clipped"),
        ({"sampling__sampling_logp_difference__mean": 0.2}, "Sampler and training forward disagree by 0.2 nats"),
        ({"objective__unscored": 16.0}, "No reward has an opinion on 50 % of the answers"),
        ({"skipped": lambda step: float(step == 7)}, "1 update was skipped: loss or gradient was not finite, first by"),
        ({"grad_norm": None}, "Not always finite: grad_norm."),
    ],
)
def test_what_is_wrong_is_found(tmp_path, changes, expected):
    (seen,) = _changed(tmp_path, **changes)
    assert seen.startswith(expected)


@pytest.mark.parametrize(
    "changes",
    [
        {"completions__clipped_ratio": 0.85},
        {"frac_reward_zero_std": 0.85},
        {"objective__kl": lambda step: 4.0 * step**0.5},
        {"objective__kl": lambda step: 0.6 * step},
        {"policy__clipfrac_avg": 0.25},
        {"policy__entropy_avg": lambda step: 2.0 if step < 5 else 0.3},
        {"objective__unscored": 3.0},
        {"skipped": 0.0},
    ],
)
def test_what_is_usual_is_not_found(tmp_path, changes):
    assert _changed(tmp_path, **changes) == []


def test_scores_that_are_all_equal_are_found(tmp_path):
    edges = [2.0 + 0.05 * (number - 10) for number in range(21)]
    equal = {"scores": {"edges": edges, "counts": [0] * 10 + [64] + [0] * 9, "unscored": 0}}
    run = write_ppo(tmp_path / "run", histograms=[histogram(5, 1.0), *({"step": n, **equal} for n in range(6, 21))])
    assert _seen(run) == ["All recent answers have the same score, 2."]


def test_length_that_drifts_is_found(tmp_path):
    lines = [{"step": step, "completions/mean_length": 20.0 + 2 * step, "eval/loss": 1.0} for step in range(1, 21)]
    config = GRPOConfig(out="o", model="m", rewards=("r",))
    assert _seen(write_run(tmp_path / "run", lines, config=config)) == [
        "The answers have become much longer: 22 tokens at first, 57 now."
    ]


def test_score_that_does_not_rise_is_found(tmp_path):
    lines = [{"step": step, "reward": 1.0 - step / 100, "eval/loss": 1.0} for step in range(1, 21)]
    config = GRPOConfig(out="o", model="m", rewards=("r",))
    (seen,) = _seen(write_run(tmp_path / "run", lines, config=config))
    assert seen.startswith("The score has not risen: 0.99 at first, 0.81")


def test_accuracy_of_guessing_is_found(tmp_path):
    run = write_run(tmp_path / "run", [{"step": 20, "eval/rewards/accuracies": 0.51}], config=DPOConfig(out="o"))
    assert _seen(run) == ["51 % of the pairs are in the right order, and guessing gets 50 %."]


def test_loss_that_rises_on_held_out_rows_is_found(tmp_path):
    lines = [{"step": step, "eval/loss": loss} for step, loss in ((0, 2.0), (10, 1.0), (20, 1.1))]
    assert _seen(write_run(tmp_path / "run", lines)) == [
        "The evaluation's loss was lowest after step 10 (1) and has risen to 1.1."
    ]


def test_run_without_evaluation_is_told(tmp_path):
    (seen,) = _seen(write_run(tmp_path / "run", [{"step": 20, "loss": 1.0}]))
    assert seen.startswith("Nothing was evaluated")


def test_lines_that_were_left_out_are_told(tmp_path):
    run = write_run(tmp_path / "run", [{"step": 20, "eval/loss": 1.0}])
    with (run / "metrics.jsonl").open("a") as file:
        file.write("rubbish\n" * 5)
    (seen,) = _seen(run)
    assert seen.startswith(f"Left out 5 lines that could not be read: {run}/metrics.jsonl:2: not a line of JSON;")
    assert seen.endswith("; and 2 more.")


def test_problems_come_before_hints(tmp_path):
    lines = [{"step": step, "skipped": 1.0, "loss": 1.0} for step in range(1, 6)]
    found = findings_of(record(write_run(tmp_path / "run", lines, config=SFTConfig(out="o"))))
    assert [finding.level for finding in found] == ["problem", "hint"]
    assert all(finding.advice for finding in found)


def test_few_steps_of_a_finished_run_are_told(tmp_path):
    run = write_run(tmp_path / "run", [{"step": 3, "eval/loss": 1.0}])
    assert _seen(run) == []
    (run / "export").mkdir()
    (run / "export" / "config.json").write_text("{}")
    assert _seen(run) == ["The run had 3 steps, which teach next to nothing."]
