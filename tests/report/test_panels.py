import pytest

from jaxrlhf.report.panels import panels_of


def test_known_metrics_come_in_order_with_their_labels():
    panels = panels_of(["grad_norm", "objective/kl", "critic/grad_norm", "eval/objective/scores"])
    assert [(panel.title, dict(panel.metrics)) for panel in panels] == [
        ("Score", {"objective/scores": "score"}),
        ("KL to the reference", {"objective/kl": "KL"}),
        ("Gradient norm", {"grad_norm": "model", "critic/grad_norm": "critic"}),
    ]


def test_training_and_evaluation_share_a_chart():
    (panel,) = panels_of(["loss", "eval/loss"])
    assert panel.metrics == {"loss": "loss"}


def test_single_rewards_are_labelled_by_name():
    (panel,) = panels_of(["rewards/brevity/mean", "rewards/helpful/mean"])
    assert panel.metrics == {"rewards/brevity/mean": "brevity", "rewards/helpful/mean": "helpful"}


def test_dpo_rewards_are_no_single_rewards():
    assert [panel.title for panel in panels_of(["rewards/chosen", "rewards/rejected"])] == ["Implicit rewards"]


@pytest.mark.parametrize(
    "name",
    [
        "train_policy",
        "policy/rest_ratio",
        "objective/kl_coef",
        "objective/running_score_mean",
        "objective/running_score_std",
        "objective/entropy",
        "objective/unscored",
        "objective/non_score_reward",
        "loss/ptx_avg",
        "val/num_eos_tokens",
        "clip_ratio/region_mean",
        "reward/best",
        "rejection/kept",
        "kl",
    ],
)
def test_metric_has_a_title_and_a_unit(name):
    (panel,) = panels_of([name])
    assert panel.title != name and panel.unit


def test_unknown_metric_has_a_chart_of_its_own():
    (panel,) = panels_of(["my/own", "time/train_s", "num_tokens"])
    assert (panel.title, panel.metrics, panel.minor) == ("my/own", {"my/own": "own"}, True)
