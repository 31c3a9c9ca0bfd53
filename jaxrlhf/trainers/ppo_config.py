"""What PPO is told."""

from __future__ import annotations

import dataclasses

from jaxrlhf.config_checks import check, not_negative, positive
from jaxrlhf.trainers.config import OptimConfig, default_rate
from jaxrlhf.trainers.rollout_config import RolloutTrainConfig, UpdateOptions


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
