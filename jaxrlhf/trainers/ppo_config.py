"""What PPO is told."""

from __future__ import annotations

import dataclasses
from typing import Literal

from jaxrlhf.config_checks import check, not_negative, positive
from jaxrlhf.data.config import DataConfig
from jaxrlhf.trainers.config import OptimConfig, default_rate
from jaxrlhf.trainers.rollout_config import RolloutTrainConfig, UpdateOptions, without_dropout

Normalize = Literal["none", "scale", "standardize"]

KL_HORIZON = 10_000
"""Answers in which the price of a nat adapts, unless said otherwise (Ziegler et al. 2019)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PPOOptions(UpdateOptions):
    """The options of PPO. Defaults are TRL's unless said; what TRL does not have is off.

    Attributes:
        kl_coef: price of a nat of KL to the reference in the reward, not negative.
        kl: KL in the reward: "k1", the log-ratio of the tokens drawn (as TRL and Ziegler et al. 2019), or "exact", the
            sum over the vocabulary: less noise, the same expected gradient, one more pass over the head a rollout.
        kl_target: KL that an adaptive price aims at, nats an answer, positive; 6 is usual (Ziegler et al. 2019). None
            keeps the price at `kl_coef`, as TRL and InstructGPT do; else it only starts there.
        kl_horizon: answers in which an adaptive price changes by a fifth of itself, where the KL is a fifth or more off
            its target; not fewer than those of a step. None means 10000 (Ziegler et al. 2019).
        clip_eps: half-width of the ratio's interval, positive.
        value_clip_eps: how far a value may move in one rollout, positive.
        gamma: discount, in [0, 1].
        lam: trace decay of GAE, in [0, 1].
        normalize_scores: "scale" divides scores by the deviation of all scores so far, "standardize" subtracts their
            mean before; "none" takes them as they are. (Options of TRL until 0.11, `use_score_scaling` and
            `use_score_norm`, off by default.)
        score_clip: size that a score, normalised if it is, is clipped to, positive; None clips none. (TRL until 0.11.)
        whiten_rewards: whether shaped rewards are scaled to variance 1 before GAE.
        missing_eos_penalty: subtracted from the score of an answer that was cut off, after normalising and clipping;
            not negative.
        entropy_coef: weight of the policy's entropy, nats a token, which the loss rewards; not negative. 0 as in TRL;
            0.01 in Schulman et al. 2017 for games.
        early_stop_kl: KL to the policy that sampled, nats a token (half the mean squared log-ratio), above which the
            policy rests for what is left of a rollout, while the critic learns on; positive. The update that finds it
            is the last one taken (Spinning Up, which uses 0.015, leaves that out too). None never stops.
        critic_warmup_steps: first steps in which the critic learns alone, not negative; schedules of learning rates go
            on meanwhile. 0 as in TRL.
        critic_learning_rate: the critic's highest rate, positive; None means `optim.learning_rate`. It follows the same
            schedule.
    """

    epochs: int = 4
    kl_coef: float = 0.05
    kl: Literal["k1", "exact"] = "k1"
    kl_target: float | None = None
    kl_horizon: int | None = None
    clip_eps: float = 0.2
    value_clip_eps: float = 0.2
    gamma: float = 1.0
    lam: float = 0.95
    normalize_scores: Normalize = "none"
    score_clip: float | None = None
    whiten_rewards: bool = False
    missing_eos_penalty: float = 0.0
    entropy_coef: float = 0.0
    early_stop_kl: float | None = None
    critic_warmup_steps: int = 0
    critic_learning_rate: float | None = None

    def __post_init__(self) -> None:
        """Checks ranges and combinations."""
        check(
            self,
            *positive(self, "clip_eps", "value_clip_eps", "epochs", "mini_batches", "critic_learning_rate"),
            *positive(self, "kl_target", "kl_horizon", "score_clip", "early_stop_kl"),
            *not_negative(self, "kl_coef", "missing_eos_penalty", "entropy_coef", "critic_warmup_steps"),
            (0 <= self.gamma <= 1, f"gamma={self.gamma} must lie in [0, 1]"),
            (0 <= self.lam <= 1, f"lam={self.lam} must lie in [0, 1]"),
            (
                self.kl_horizon is None or self.kl_target is not None,
                f"kl_horizon={self.kl_horizon} has no effect on a fixed price; set kl_target, or leave it out",
            ),
            (
                self.kl_target is None or self.kl_coef > 0,
                f"kl_target={self.kl_target}: a price of kl_coef=0 cannot adapt; start from a positive one",
            ),
            (
                self.kl == "k1" or self.kl_coef > 0,
                f"kl={self.kl} has no effect at kl_coef=0; set kl_coef, or leave it out",
            ),
            (
                self.early_stop_kl is None or self.epochs * self.mini_batches > 1,
                f"early_stop_kl={self.early_stop_kl} has no effect on a single update a rollout; raise epochs or "
                "mini_batches, or leave it out",
            ),
        )

    @property
    def policy_may_rest(self) -> bool:
        """Whether some updates leave the policy out."""
        return self.early_stop_kl is not None or self.critic_warmup_steps > 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class PTXConfig:
    """Texts whose LM loss joins PPO's, against forgetting (PPO-ptx of Ouyang et al. 2022).

    Attributes:
        dataset: file, folder or hub id of texts or demonstrations; None leaves them out.
        coef: weight of their LM loss, a token mean, beside PPO's; positive. 27.8 in Ouyang et al. 2022, appendix C.4,
            whose rewards are normalised and whose models are large; try 1 with small ones.
        batch_size: rows in each update of the policy, over all devices, positive; divided by `micro_batches`. Updates
            take different rows.
        data: how rows become tokens.
    """

    dataset: str | None = None
    coef: float = 27.8
    batch_size: int = 32
    data: DataConfig = dataclasses.field(default_factory=DataConfig)

    def __post_init__(self) -> None:
        """Checks ranges."""
        check(self, *positive(self, "coef", "batch_size"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class PPOConfig(RolloutTrainConfig):
    """PPO with a KL penalty to a frozen reference.

    Attributes:
        reference: the reference policy; None means `model`.
        critic: what the critic starts from; None means the reward model, or without one `model` with a head of zeros.
        ppo: options of the method.
        ptx: texts to learn from beside.
    """

    optim: OptimConfig = default_rate(3e-6)
    reference: str | None = None
    critic: str | None = None
    ppo: PPOOptions = dataclasses.field(default_factory=PPOOptions)
    ptx: PTXConfig = dataclasses.field(default_factory=PTXConfig)

    def __post_init__(self) -> None:
        """Checks ranges and combinations."""
        super().__post_init__()
        rows, parts = self.ptx.batch_size, self.micro_batches
        answers, horizon = self.batch_size * self.rollout.answers, self.kl_horizon
        check(
            self,
            without_dropout(self.lora),
            (rows % max(1, parts) == 0, f"micro_batches={parts} does not divide ptx.batch_size={rows}"),
            (
                self.ppo.kl_target is None or horizon >= answers,
                f"ppo.kl_horizon={horizon} is shorter than a step, which has {answers} answers (batch_size="
                f"{self.batch_size} x rollout.answers={self.rollout.answers}): the price would swing; use more",
            ),
        )

    @property
    def options(self) -> PPOOptions:
        """The options of the method."""
        return self.ppo

    @property
    def kl_horizon(self) -> int:
        """Answers in which an adaptive price of a nat changes by a fifth."""
        return KL_HORIZON if self.ppo.kl_horizon is None else self.ppo.kl_horizon

    @property
    def pretraining_rows(self) -> int:
        """Rows of `ptx` in a step."""
        return self.ptx.batch_size * self.ppo.epochs * self.ppo.mini_batches
