import pytest

from jaxrlhf.report.findings import findings_of
from jaxrlhf.trainers.grpo_config import GRPOConfig
from tests.report.runs import histogram, record, seen, write_changed, write_ppo, write_run

GRPO = GRPOConfig(out="o", model="m", rewards=("r",))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"completions__clipped_ratio": 0.95}, "95 % of the answers are cut off, at first 95 %"),
        ({"frac_reward_zero_std": 0.97}, "In 97 % of the groups all rewards are equal"),
        ({"objective__unscored": 16.0}, "No reward has an opinion on 50 % of the answers"),
    ],
)
def test_what_is_wrong_is_found(tmp_path, changes, expected):
    (found,) = seen(write_changed(tmp_path / "run", **changes))
    assert found.startswith(expected)


@pytest.mark.parametrize(
    "changes", [{"completions__clipped_ratio": 0.9}, {"frac_reward_zero_std": 0.85}, {"objective__unscored": 3.0}]
)
def test_what_is_usual_is_not_found(tmp_path, changes):
    assert seen(write_changed(tmp_path / "run", **changes)) == []


@pytest.mark.parametrize(
    ("share", "level"),
    [(1.0, "hint"), (0.995, "hint"), (0.95, "problem"), (lambda step: 0.2 if step < 9 else 1.0, "problem")],
)
def test_answers_that_have_no_end_from_the_first_on_are_a_hint(tmp_path, share, level):
    (found,) = findings_of(record(write_changed(tmp_path / "run", completions__clipped_ratio=share)))
    assert found.level == level
    assert ("by design" in found.advice) == (level == "hint")


@pytest.mark.parametrize(("config", "mentioned"), [(None, True), (GRPO, False)])
def test_penalty_that_only_ppo_has_is_advised_to_ppo(tmp_path, config, mentioned):
    (found,) = findings_of(record(write_changed(tmp_path / "run", config=config, completions__clipped_ratio=0.95)))
    assert ("ppo.missing_eos_penalty" in found.advice) == mentioned
    assert found.advice.startswith("Raise rollout.max_new_tokens, ")


def test_scores_that_are_all_equal_are_found(tmp_path):
    edges = [2.0 + 0.05 * (number - 10) for number in range(21)]
    equal = {"scores": {"edges": edges, "counts": [0] * 10 + [64] + [0] * 9, "unscored": 0}}
    run = write_ppo(tmp_path / "run", histograms=[histogram(5, 1.0), *({"step": n, **equal} for n in range(6, 21))])
    assert seen(run) == ["All recent answers have the same score, 2."]


def test_length_that_drifts_is_found(tmp_path):
    lines = [{"step": step, "completions/mean_length": 20.0 + 2 * step, "eval/loss": 1.0} for step in range(1, 21)]
    assert seen(write_run(tmp_path / "run", lines, config=GRPO)) == [
        "The answers have become much longer: 22 tokens at first, 57 now."
    ]


def test_score_that_does_not_rise_is_found(tmp_path):
    lines = [{"step": step, "reward": 1.0 - step / 100, "eval/loss": 1.0} for step in range(1, 21)]
    (found,) = seen(write_run(tmp_path / "run", lines, config=GRPO))
    assert found.startswith("The score has not risen: 0.99 at first, 0.81")
