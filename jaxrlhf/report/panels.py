"""Which metrics share a chart, what it is called, and in which order charts come."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from jaxrlhf.report.frame import ANY, NOT_NEGATIVE, SHARE, Limits
from jaxrlhf.report.series import Curve

EVALUATION = "eval/"
"""What the names of an evaluation's metrics begin with."""


class Panel(NamedTuple):
    """A chart.

    Attributes:
        title: what it shows.
        unit: of its numbers, or a remark.
        metrics: name of a metric, in which `*` stands for any text -> what it is called here, "" for its own name.
        minor: whether it is for those who look closer.
        limits: what its numbers do not go beyond.
    """

    title: str
    unit: str
    metrics: Mapping[str, str]
    minor: bool = False
    limits: Limits = ANY


PANELS = (
    Panel("Score", "sum of the rewards", {"objective/scores": "score", "reward": "score"}),
    Panel("KL to the reference", "nats an answer", {"objective/kl": "KL"}, limits=NOT_NEGATIVE),
    Panel("Score of the answers kept", "sum of the rewards", {"reward/best": "score"}),
    Panel("Answers kept", "share of the places", {"rejection/kept": "kept"}, limits=SHARE),
    Panel("Loss", "", {"loss": "loss"}),
    Panel(
        "Accuracy",
        "share",
        {"accuracy": "pairs", "rewards/accuracies": "pairs", "mean_token_accuracy": "tokens"},
        limits=SHARE,
    ),
    Panel("Length of answers", "tokens, mean", {"completions/mean_length": "mean"}, limits=NOT_NEGATIVE),
    Panel("Answers cut off", "share", {"completions/clipped_ratio": "cut off"}, limits=SHARE),
    Panel("Margin", "chosen less rejected", {"margin": "margin"}),
    Panel(
        "Implicit rewards",
        "beta times log-ratio",
        {"rewards/chosen": "chosen", "rewards/rejected": "rejected", "rewards/margins": "margin"},
    ),
    Panel(
        "Entropy",
        "nats a token",
        {"policy/entropy_avg": "entropy", "entropy": "entropy"},
        limits=NOT_NEGATIVE,
    ),
    Panel("Groups that teach nothing", "share", {"frac_reward_zero_std": "all rewards equal"}, limits=SHARE),
    Panel(
        "Clipped tokens",
        "share",
        {
            "policy/clipfrac_avg": "policy",
            "val/clipfrac_avg": "critic",
            "clip_ratio/low_mean": "low",
            "clip_ratio/high_mean": "high",
            "clip_ratio/region_mean": "either",
        },
        limits=SHARE,
    ),
    Panel(
        "Gradient norm", "before clipping", {"grad_norm": "model", "critic/grad_norm": "critic"}, limits=NOT_NEGATIVE
    ),
    Panel("Policy loss", "", {"loss/policy_avg": "policy", "policy_loss": "policy"}),
    Panel("Critic loss", "", {"loss/value_avg": "critic"}),
    Panel("Price of KL", "score a nat", {"objective/kl_coef": "price"}, limits=NOT_NEGATIVE),
    Panel("Loss on texts beside", "nats a token", {"loss/ptx_avg": "texts"}, limits=NOT_NEGATIVE),
    Panel("Learning rate", "", {"learning_rate": "model", "critic_learning_rate": "critic"}, limits=NOT_NEGATIVE),
    Panel("Single rewards", "before weights", {"rewards/*/mean": ""}, minor=True),
    Panel(
        "Score less the price of KL",
        "shaped score, an answer",
        {"objective/rlhf_reward": "score", "objective/non_score_reward": "price of KL, negative"},
        minor=True,
    ),
    Panel("Answers without an opinion", "a line", {"objective/unscored": "answers"}, minor=True, limits=NOT_NEGATIVE),
    Panel("Answers that end", "a step", {"val/num_eos_tokens": "answers"}, minor=True, limits=NOT_NEGATIVE),
    Panel(
        "Longest and shortest answer",
        "tokens",
        {"completions/max_length": "longest", "completions/min_length": "shortest"},
        minor=True,
        limits=NOT_NEGATIVE,
    ),
    Panel("KL in the loss", "nats: GRPO's a token, KTO's an answer", {"kl": "KL"}, minor=True, limits=NOT_NEGATIVE),
    Panel("Entropy of an answer", "nats an answer, estimated", {"objective/entropy": "entropy"}, minor=True),
    Panel("Spread within groups", "standard deviation", {"reward_std": "score"}, minor=True),
    Panel(
        "Scores of single answers",
        "",
        {"max_reward": "highest", "mean_reward": "mean", "min_reward": "lowest"},
        minor=True,
    ),
    Panel("Log-probabilities", "nats an answer", {"logps/chosen": "chosen", "logps/rejected": "rejected"}, minor=True),
    Panel("Ratio", "to the policy that sampled", {"val/ratio": "mean", "ratio": "mean"}, minor=True),
    Panel(
        "Approximate KL of the updates", "nats a token", {"policy/approxkl_avg": "KL"}, minor=True, limits=NOT_NEGATIVE
    ),
    Panel("Updates that left the policy out", "share", {"policy/rest_ratio": "at rest"}, minor=True, limits=SHARE),
    Panel("Policy learns", "0 in the critic's warm-up, then 1", {"train_policy": "learns"}, minor=True, limits=SHARE),
    Panel(
        "Scores so far",
        "before normalising",
        {"objective/running_score_mean": "mean", "objective/running_score_std": "standard deviation"},
        minor=True,
    ),
    Panel("Skipped updates", "a line", {"skipped": "model", "critic/skipped": "critic"}, minor=True),
    Panel(
        "Sampler against training",
        "difference of log-probabilities",
        {"sampling/sampling_logp_difference/mean": "mean", "sampling/sampling_logp_difference/max": "largest"},
        minor=True,
    ),
)
"""The charts that are known; a metric that none of them names gets one of its own."""


def panels_of(names: Iterable[str]) -> list[Panel]:
    """The charts of a run, in order.

    Args:
        names: of its metrics, those of evaluations too; times are told elsewhere.

    Returns:
        The known charts for which there is a metric, then one for each other metric; `metrics` holds what is there.
    """
    plain = dict.fromkeys(name.removeprefix(EVALUATION) for name in names)
    left = [name for name in plain if not name.startswith("time/") and name != "num_tokens"]
    found = []
    for panel in PANELS:
        there = {
            name: label or name.split("/")[1]
            for pattern, label in panel.metrics.items()
            for name in left
            if fnmatch.fnmatchcase(name, pattern)
        }
        left = [name for name in left if name not in there]
        found += [panel._replace(metrics=there)] if there else []
    return found + [Panel(name, "", {name: name.rpartition("/")[2]}, minor=True) for name in sorted(left)]


def has_values(curve: Curve) -> bool:
    """Whether there is anything to draw."""
    return any(point.value is not None for point in curve)
