"""What GRPO is told."""

from __future__ import annotations

import dataclasses
from typing import Literal

from jaxrlhf.config_checks import check, not_negative, positive
from jaxrlhf.trainers.config import OptimConfig, default_rate
from jaxrlhf.trainers.rollout_config import RolloutConfig, RolloutTrainConfig, UpdateOptions, without_dropout

Baseline = Literal["mean", "leave_one_out", "none"]
Scale = Literal["group", "batch", "none"]
Reduction = Literal["grpo", "dapo", "dr_grpo", "bnpo"]
KLTerm = Literal["unbiased", "k1", "k2", "k3", "exact"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class GRPOOptions(UpdateOptions):
    """The options of GRPO. Defaults are TRL's unless said.

    Attributes:
        baseline: what an answer's reward is compared with: the "mean" of its group, the mean of the others
            ("leave_one_out", as RLOO), or "none".
        scale_rewards: what divides the difference: the standard deviation of the "group", of the "batch", or "none" (as
            Dr. GRPO).
        reduction: how the costs of tokens become a loss: "dapo", the mean over all tokens; "grpo", the mean over
            answers of their token means; "dr_grpo", the sum by `rollout.max_new_tokens`; "bnpo", the token mean of each
            micro-batch.
        clip_low: how far the ratio may fall, in (0, 1].
        clip_high: how far the ratio may rise, positive; 0.28 above a `clip_low` of 0.2 is DAPO's clip-higher.
        kl_coef: price of a nat of KL to the reference in the loss, not negative; 0 needs no reference.
        kl: the KL term of the loss: "unbiased", which has the gradient of the KL (TRL's default too, since it weighs
            k3 by the ratio); the estimators "k1", "k2" and "k3", which has another gradient; or "exact", the sum over
            the vocabulary, for one more forward of the reference an update.
        share_prompts: whether the answers to a prompt share its row where they are judged and learned from, so that a
            model reads the prompt once and not once an answer. An update then takes whole groups. None: where that
            leaves less to compute and what is learned stays the same within rounding: where one update takes all
            answers of a step, its loss does not depend on how they are cut, as that of "bnpo" does, and attention can
            have such rows (see `data.share_prompts`).
    """

    baseline: Baseline = "mean"
    scale_rewards: Scale = "group"
    reduction: Reduction = "dapo"
    clip_low: float = 0.2
    clip_high: float = 0.2
    kl_coef: float = 0.0
    kl: KLTerm = "unbiased"
    share_prompts: bool | None = None

    def __post_init__(self) -> None:
        """Checks ranges and combinations."""
        check(
            self,
            *positive(self, "epochs", "mini_batches", "clip_low", "clip_high"),
            *not_negative(self, "kl_coef"),
            (self.clip_low <= 1, f"clip_low={self.clip_low} must lie in (0, 1]"),
            (self.kl_coef > 0 or self.kl == "unbiased", f"kl={self.kl} has no effect at kl_coef=0; set kl_coef"),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class GRPOConfig(RolloutTrainConfig):
    """GRPO: several answers to each prompt, each compared with the others; no critic.

    Attributes:
        reference: the reference policy; None means `model`.
        grpo: options of the method.
        rollout: how answers are drawn; 8 answers to a prompt unless said.
    """

    optim: OptimConfig = default_rate(1e-6)
    reference: str | None = None
    rollout: RolloutConfig = dataclasses.field(default_factory=lambda: RolloutConfig(answers=8))
    grpo: GRPOOptions = dataclasses.field(default_factory=GRPOOptions)

    def __post_init__(self) -> None:
        """Checks ranges and combinations."""
        super().__post_init__()
        check(
            self,
            without_dropout(self.lora),
            (
                self.rollout.answers > 1 or (self.grpo.baseline == "none" and self.grpo.scale_rewards != "group"),
                f"rollout.answers={self.rollout.answers}: an answer alone in its group teaches nothing; use 2 or more",
            ),
            (
                self.reference is None or self.grpo.kl_coef > 0,
                f"reference={self.reference} has no effect at grpo.kl_coef=0; set one, or leave the other out",
            ),
            (
                not self.grpo.share_prompts or self.cuts_whole_groups,
                f"grpo.share_prompts=true: mini_batches={self.grpo.mini_batches} x micro_batches={self.micro_batches} "
                f"must divide the {self.batch_size} prompts of a step (batch_size)",
            ),
        )

    @property
    def micro_prompts(self) -> int:
        """Prompts whose answers go through a model at once, where groups are kept whole."""
        return self.batch_size // (self.grpo.mini_batches * self.micro_batches)

    @property
    def cuts_whole_groups(self) -> bool:
        """Whether each part of an update can have all answers to its prompts."""
        return self.batch_size % (self.grpo.mini_batches * self.micro_batches) == 0

    @property
    def cuts_do_not_matter(self) -> bool:
        """Whether it is all one for what is learned which answers each part of an update has."""
        return self.grpo.mini_batches == 1 and (self.grpo.reduction != "bnpo" or self.micro_batches == 1)

    @property
    def options(self) -> GRPOOptions:
        """The options of the method."""
        return self.grpo
