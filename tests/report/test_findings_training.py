import pytest

from jaxrlhf.report.findings import findings_of
from jaxrlhf.trainers.config import DPOConfig, KTOConfig
from jaxrlhf.trainers.grpo_config import GRPOConfig
from jaxrlhf.trainers.ppo_config import PPOConfig, PPOOptions
from jaxrlhf.trainers.rejection_config import RejectionConfig
from tests.report.runs import record, seen, write_changed, write_run

ADAPTIVE = PPOConfig(out="o", model="m", rewards=("r",), ppo=PPOOptions(kl_target=6.0))
GRPO = GRPOConfig(out="o", model="m", rewards=("r",))
REJECTION = RejectionConfig(out="o", model="m", rewards=("r",))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"objective__kl": 30.0}, "The KL to the reference runs away: 30 nats an answer, 1.5"),
        ({"objective__kl": lambda step: 0.03 * 1.35**step}, "The KL to the reference runs away: "),
        ({"objective__kl": -2.0}, "The KL to the reference is negative: −2 nats"),
        ({"policy__entropy_avg": lambda step: 2.0 if step < 5 else 0.1}, "The policy has lost its entropy: 2 nats"),
        ({"policy__clipfrac_avg": 0.45}, "45 % of the tokens are clipped"),
        ({"sampling__sampling_logp_difference__mean": 0.2}, "Sampler and training forward disagree by 0.2 nats"),
        (
            {"skipped": lambda step: float(step == 7)},
            "1 of 160 updates was skipped: loss or gradient was not finite, first by step 7.",
        ),
        ({"grad_norm": None}, "Not always finite: grad_norm."),
    ],
)
def test_what_is_wrong_is_found(tmp_path, changes, expected):
    (found,) = seen(write_changed(tmp_path / "run", **changes))
    assert found.startswith(expected)


@pytest.mark.parametrize(
    "changes",
    [
        {"objective__kl": lambda step: 4.0 * step**0.5},
        {"objective__kl": lambda step: 0.6 * step},
        {"policy__clipfrac_avg": 0.25},
        {"policy__entropy_avg": lambda step: 2.0 if step < 5 else 0.3},
        {"skipped": 0.0},
    ],
)
def test_what_is_usual_is_not_found(tmp_path, changes):
    assert seen(write_changed(tmp_path / "run", **changes)) == []


@pytest.mark.parametrize(
    ("config", "first"),
    [
        (None, "Raise ppo.kl_coef, lower optim"),
        (ADAPTIVE, "Lower ppo.kl_target, lower optim"),
        (GRPO, "Raise grpo.kl_coef, lower optim"),
        (REJECTION, "Lower optim.learning_rate, or stop earlier."),
    ],
)
def test_advice_against_drift_is_of_the_method(tmp_path, config, first):
    (found,) = findings_of(record(write_changed(tmp_path / "run", config=config, objective__kl=30.0)))
    assert f"do not. {first}" in found.advice


@pytest.mark.parametrize(("each", "level"), [(1.0, "hint"), (2.0, "problem")])
def test_skipped_updates_are_a_share_of_all_updates(tmp_path, each, level):
    changes = {"skipped": lambda step: each if step == 7 else 0.0}  # of 160: 20 steps of 4 epochs of 2 models
    (found,) = findings_of(record(write_changed(tmp_path / "run", **changes)))
    assert found.level == level


def test_updates_that_the_policy_rested_in_are_none(tmp_path):
    changes = {"policy__rest_ratio": lambda step: 1.0 if step <= 5 else 0.0, "skipped": lambda step: float(step == 7)}
    (found,) = seen(write_changed(tmp_path / "run", **changes))
    assert found.startswith("1 of 140 updates was skipped")  # 4 epochs in 5 steps


def test_a_step_of_other_methods_is_an_update(tmp_path):
    lines = [{"step": step, "skipped": float(step == 150), "eval/loss": 1.0} for step in (150, 300)]
    (found,) = findings_of(record(write_run(tmp_path / "run", lines)))
    assert (found.level, found.seen.partition(" was")[0]) == ("hint", "1 of 300 updates")


@pytest.mark.parametrize(
    "name", ["loss__policy_avg", "policy__entropy_avg", "loss__ptx_avg", "grad_norm", "val__ratio"]
)
def test_policy_that_rests_lacks_no_number(tmp_path, name):
    changes = {name: lambda step: None if step <= 5 else 1.0}
    rests = {"policy__rest_ratio": lambda step: 1.0 if step <= 5 else 0.0}
    assert seen(write_changed(tmp_path / "rests", **changes, **rests)) == []
    (found,) = seen(write_changed(tmp_path / "learns", **changes))
    assert found.startswith("Not always finite")


def test_critic_learns_while_the_policy_rests(tmp_path):
    (found,) = seen(write_changed(tmp_path / "run", policy__rest_ratio=1.0, loss__value_avg=None))
    assert found == "Not always finite: loss/value_avg."


@pytest.mark.parametrize(("kept", "count"), [(0.0, 0), (0.5, 1)])
def test_step_that_kept_no_answer_lacks_no_number(tmp_path, kept, count):
    lines = [{"step": step, "eval/reward": 1.0 * step, "loss": 1.0, "rejection/kept": 0.5} for step in (10, 20)]
    lines[0] |= {"loss": None, "grad_norm": None, "reward/best": None, "rejection/kept": kept}
    assert len(seen(write_run(tmp_path / "run", lines, config=REJECTION))) == count


@pytest.mark.parametrize(("unscored", "count"), [(64.0, 0), (0.0, 1)])
def test_line_without_an_opinion_lacks_no_number(tmp_path, unscored, count):
    lines = [{"step": step, "eval/reward": 1.0 * step, "reward": 1.0, "objective/unscored": 0.0} for step in (10, 200)]
    lines[0] |= {"reward": None, "policy_loss": None, "reward_std": None, "objective/unscored": unscored}
    assert len(seen(write_run(tmp_path / "run", lines, config=GRPO))) == count


def test_reward_without_an_opinion_lacks_no_number(tmp_path):
    assert seen(write_changed(tmp_path / "run", rewards__polite__mean=None)) == []


@pytest.mark.parametrize(("config", "count"), [(KTOConfig, 0), (DPOConfig, 1)])
def test_batch_without_a_good_answer_lacks_no_number_of_kto(tmp_path, config, count):
    lines = [{"step": 20, "eval/loss": 1.0, "rewards/chosen": None, "logps/chosen": None}]
    assert len(seen(write_run(tmp_path / "run", lines, config=config(out="o")))) == count


def test_accuracy_of_guessing_is_found(tmp_path):
    run = write_run(tmp_path / "run", [{"step": 20, "eval/rewards/accuracies": 0.51}], config=DPOConfig(out="o"))
    assert seen(run) == ["51 % of the pairs are in the right order, and guessing gets 50 %."]


def test_loss_that_rises_on_held_out_rows_is_found(tmp_path):
    lines = [{"step": step, "eval/loss": loss} for step, loss in ((0, 2.0), (10, 1.0), (20, 1.1))]
    assert seen(write_run(tmp_path / "run", lines)) == [
        "The evaluation's loss was lowest after step 10 (1) and has risen to 1.1."
    ]
