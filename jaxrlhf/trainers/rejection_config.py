"""What rejection-sampling fine-tuning is told."""

from __future__ import annotations

import dataclasses
import math

from jaxrlhf.config_checks import check, positive
from jaxrlhf.trainers.config import OptimConfig, default_rate
from jaxrlhf.trainers.rollout_config import RolloutConfig, RolloutTrainConfig, UpdateOptions


@dataclasses.dataclass(frozen=True, kw_only=True)
class RejectionOptions(UpdateOptions):
    """The options of rejection-sampling fine-tuning.

    Attributes:
        keep: answers to each prompt to learn from, the best ones; from 1 to `rollout.answers`.
        min_score: an answer that scores less is not learned from, finite; None learns from the best whatever they
            score.
    """

    keep: int = 1
    min_score: float | None = None

    def __post_init__(self) -> None:
        """Checks ranges."""
        check(
            self,
            *positive(self, "keep", "epochs", "mini_batches"),
            (
                self.min_score is None or math.isfinite(self.min_score),
                f"min_score={self.min_score} must be a finite number; leave it out to learn from the best of any score",
            ),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class RejectionConfig(RolloutTrainConfig):
    """Rejection-sampling fine-tuning: several answers to each prompt, of which the best are imitated.

    The loss is that of `sft` at temperature 1, whatever the temperature of the draws.

    Attributes:
        rejection: options of the method.
        rollout: how answers are drawn; 8 answers to a prompt unless said.
    """

    optim: OptimConfig = default_rate(2e-5)
    rollout: RolloutConfig = dataclasses.field(default_factory=lambda: RolloutConfig(answers=8))
    rejection: RejectionOptions = dataclasses.field(default_factory=RejectionOptions)

    def __post_init__(self) -> None:
        """Checks combinations."""
        super().__post_init__()
        keep, answers = self.rejection.keep, self.rollout.answers
        updates, parts, rows = self.rejection.mini_batches, self.micro_batches, self.batch_size * keep
        check(
            self,
            (keep <= answers, f"rejection.keep={keep} of rollout.answers={answers}: there are not so many; keep fewer"),
            (
                keep != answers or self.rejection.min_score is not None,
                f"rejection.keep={keep} of rollout.answers={answers} rejects nothing; keep fewer, or set "
                "rejection.min_score",
            ),
            (
                rows % (updates * parts) == 0,
                f"mini_batches={updates} x micro_batches={parts} does not divide the {rows} answers of a step that are "
                f"kept (batch_size={self.batch_size} x rejection.keep={keep})",
            ),
        )

    @property
    def options(self) -> RejectionOptions:
        """The options of the method."""
        return self.rejection

    @property
    def learned(self) -> float:
        """The share of a step's answers that its updates take."""
        return self.rejection.keep / self.rollout.answers

    @property
    def kept_rows(self) -> int:
        """Answers of a micro-batch of an update."""
        return self.batch_size * self.rejection.keep // (self.rejection.mini_batches * self.micro_batches)
