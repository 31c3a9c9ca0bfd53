"""What the methods that learn from their own answers are told: PPO, GRPO."""

from __future__ import annotations

import abc
import dataclasses
import math
from typing import Literal

from jaxrlhf.config_checks import Condition, check, not_negative, positive
from jaxrlhf.trainers.config import OptimConfig, TrainConfig, default_rate

Baseline = Literal["mean", "leave_one_out", "none"]
Scale = Literal["group", "batch", "none"]
Reduction = Literal["grpo", "dapo", "dr_grpo", "bnpo"]
KLTerm = Literal["unbiased", "k1", "k2", "k3", "exact"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RolloutConfig:
    """How answers are drawn during training.

    Attributes:
        max_new_tokens: tokens of the longest answer, positive.
        temperature: divides the logits, of the log-probabilities in the losses too; positive.
        answers: answers to each prompt of a batch, positive. A prompt is prefilled once.
    """

    max_new_tokens: int = 64
    temperature: float = 1.0
    answers: int = 1

    def __post_init__(self) -> None:
        """Checks ranges."""
        check(self, *positive(self, "max_new_tokens", "temperature", "answers"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class UpdateOptions:
    """How often a rollout is learned from.

    Attributes:
        epochs: passes over a rollout, positive.
        mini_batches: updates in a pass; divides the answers of a step.
    """

    epochs: int = 1
    mini_batches: int = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class RolloutTrainConfig(TrainConfig, abc.ABC):
    """What PPO and GRPO share. `batch_size` and `eval_batch_size` count prompts; the latter is the former unless given.

    Attributes:
        reference: the reference policy; None means `model`.
        reward_model: a reward model to score answers with; it must share the policy's tokenizer.
        rewards: Python rewards, `path.py:function` or `package.module:function`. An answer's score is the sum of all
            rewards that have an opinion on it.
        reward_weights: factors of the rewards, the reward model's first if there is one; none means 1 each.
        rollout: how answers are drawn.
        samples_every: steps between two groups of answers written to samples.jsonl; 0 writes none.
    """

    reference: str | None = None
    reward_model: str | None = None
    rewards: tuple[str, ...] = ()
    reward_weights: tuple[float, ...] = ()
    rollout: RolloutConfig = dataclasses.field(default_factory=RolloutConfig)
    samples_every: int = 10

    def __post_init__(self) -> None:
        """Checks ranges and combinations."""
        super().__post_init__()
        check(self, *not_negative(self, "samples_every"), self._judges_whole_parts())

    @property
    @abc.abstractmethod
    def options(self) -> UpdateOptions:
        """The options of the method."""

    @property
    def eval_rows(self) -> int:
        """Prompts of an evaluation batch, whose answers are judged in parts as in training."""
        return self.batch_size if self.eval_batch_size is None else self.eval_batch_size

    @property
    def micro_rows(self) -> int:
        """Answers that go through a model at once."""
        return self.batch_size * self.rollout.answers // (self.options.mini_batches * self.micro_batches)

    def _divides(self) -> Condition:
        updates, rows = self.options.mini_batches, self.batch_size * self.rollout.answers
        return rows % (updates * max(1, self.micro_batches)) == 0, (
            f"mini_batches={updates} x micro_batches={self.micro_batches} does not divide the {rows} answers of a step "
            f"(batch_size={self.batch_size} x rollout.answers={self.rollout.answers})"
        )

    def _judges_whole_parts(self) -> Condition:
        """Whether the answers of an evaluation fill the parts of training, or less than one, and the message if not."""
        prompts, answers, part = self.eval_rows, self.rollout.answers, self.micro_rows
        whole = part // math.gcd(part, answers)  # the fewest prompts whose answers fill parts
        return prompts * answers <= part or prompts % whole == 0, (
            f"eval_batch_size={prompts} x rollout.answers={answers} makes {prompts * answers} answers, which are "
            f"judged {part} at a time, as in training (batch_size x rollout.answers over mini_batches x "
            f"micro_batches); use eval_batch_size={max(whole, prompts // whole * whole)}"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class PPOOptions(UpdateOptions):
    """The options of PPO. Defaults are TRL's unless said.

    Attributes:
        kl_coef: price of a nat of KL to the reference in the reward, not negative.
        clip_eps: half-width of the ratio's interval, positive.
        value_clip_eps: how far a value may move in one rollout, positive.
        gamma: discount, in [0, 1].
        lam: trace decay of GAE, in [0, 1].
        whiten_rewards: whether shaped rewards are scaled to variance 1 before GAE.
        missing_eos_penalty: subtracted from the score of an answer that was cut off, not negative.
        critic_learning_rate: the critic's highest rate, positive; None means `optim.learning_rate`. It follows the same
            schedule.
    """

    epochs: int = 4
    kl_coef: float = 0.05
    clip_eps: float = 0.2
    value_clip_eps: float = 0.2
    gamma: float = 1.0
    lam: float = 0.95
    whiten_rewards: bool = False
    missing_eos_penalty: float = 0.0
    critic_learning_rate: float | None = None

    def __post_init__(self) -> None:
        """Checks ranges."""
        check(
            self,
            *positive(self, "clip_eps", "value_clip_eps", "epochs", "mini_batches", "critic_learning_rate"),
            *not_negative(self, "kl_coef", "missing_eos_penalty"),
            (0 <= self.gamma <= 1, f"gamma={self.gamma} must lie in [0, 1]"),
            (0 <= self.lam <= 1, f"lam={self.lam} must lie in [0, 1]"),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class PPOConfig(RolloutTrainConfig):
    """PPO with a KL penalty to a frozen reference.

    Attributes:
        critic: what the critic starts from; None means the reward model, or without one `model` with a head of zeros.
        ppo: options of the method.
    """

    optim: OptimConfig = default_rate(3e-6)
    critic: str | None = None
    ppo: PPOOptions = dataclasses.field(default_factory=PPOOptions)

    @property
    def options(self) -> PPOOptions:
        """The options of the method."""
        return self.ppo


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
        kl: the KL term of the loss: "unbiased", which has the gradient of the KL (TRL's is "k3", which has not); the
            estimators "k1", "k2", "k3"; or "exact", the sum over the vocabulary, for one more forward of the reference
            an update.
    """

    baseline: Baseline = "mean"
    scale_rewards: Scale = "group"
    reduction: Reduction = "dapo"
    clip_low: float = 0.2
    clip_high: float = 0.2
    kl_coef: float = 0.0
    kl: KLTerm = "unbiased"

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
        grpo: options of the method.
        rollout: how answers are drawn; 8 answers to a prompt unless said.
    """

    optim: OptimConfig = default_rate(1e-6)
    rollout: RolloutConfig = dataclasses.field(default_factory=lambda: RolloutConfig(answers=8))
    grpo: GRPOOptions = dataclasses.field(default_factory=GRPOOptions)

    def __post_init__(self) -> None:
        """Checks ranges and combinations."""
        super().__post_init__()
        check(
            self,
            (
                self.rollout.answers > 1 or (self.grpo.baseline == "none" and self.grpo.scale_rewards != "group"),
                f"rollout.answers={self.rollout.answers}: an answer alone in its group teaches nothing; use 2 or more",
            ),
            (
                self.reference is None or self.grpo.kl_coef > 0,
                f"reference={self.reference} has no effect at grpo.kl_coef=0; set one, or leave the other out",
            ),
        )

    @property
    def options(self) -> GRPOOptions:
        """The options of the method."""
        return self.grpo
