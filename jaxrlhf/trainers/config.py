"""What a training run is told, for each method. Every field is read by the trainer of its class."""

from __future__ import annotations

import dataclasses
from typing import Literal

from jaxrlhf.data.config import DataConfig, DatasetConfig
from jaxrlhf.models.config import ComputeConfig
from jaxrlhf.sharding.config import MeshConfig

Schedule = Literal["constant", "linear", "cosine"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW and its schedule.

    Attributes:
        learning_rate: the highest rate, positive.
        schedule: after the warmup: "constant", or "linear" or "cosine" to 0 at the last step.
        warmup_steps: steps of linear warmup, 0 for none.
        b1: decay of the first moment, in [0, 1).
        b2: decay of the second moment, in [0, 1).
        eps: added to the root of the second moment, positive.
        weight_decay: decoupled decay of matrices and embeddings, not negative.
        max_grad_norm: the gradient is scaled down to this norm, positive.
    """

    learning_rate: float = 1e-5
    schedule: Schedule = "linear"
    warmup_steps: int = 0
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0

    def __post_init__(self) -> None:
        """Checks ranges."""
        _check(
            (self.learning_rate > 0, f"learning_rate={self.learning_rate} must be positive"),
            (self.warmup_steps >= 0, f"warmup_steps={self.warmup_steps} must not be negative"),
            (0 <= self.b1 < 1, f"b1={self.b1} must lie in [0, 1)"),
            (0 <= self.b2 < 1, f"b2={self.b2} must lie in [0, 1)"),
            (self.eps > 0, f"eps={self.eps} must be positive"),
            (self.weight_decay >= 0, f"weight_decay={self.weight_decay} must not be negative"),
            (self.max_grad_norm > 0, f"max_grad_norm={self.max_grad_norm} must be positive"),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What every training run is told.

    Attributes:
        out: folder of the run: config.yaml, metrics.jsonl, samples.jsonl, checkpoints/, export/. The same command run
            again goes on from the last checkpoint in it.
        model: what to start from: a Hugging Face folder, a hub id, or the folder of another run (its export).
        dataset: file, folder or hub id to train on.
        datasets: several of them with weights, in place of `dataset`.
        eval_dataset: rows to evaluate on.
        batch_size: rows of a step, over all devices.
        micro_batches: parts that a step is computed in, one after another, to save memory; divides `batch_size`.
        epochs: passes over the data, where `steps` does not say.
        steps: number of steps.
        seed: of data order, sampling and new parameters.
        log_every: steps between two lines of metrics.
        eval_every: steps between two evaluations; 0 evaluates before the first step and after the last only.
        eval_batch_size: rows of an evaluation batch, over all devices; None means `batch_size`.
        save_every: steps between two checkpoints; 0 saves after the last step only.
        keep: number of checkpoints to keep, the best one besides.
        best_metric: evaluation metric by which the exported step is chosen, e.g. `eval/loss`; None exports the last.
        best_mode: whether the smallest or the largest value is the best.
        data: how rows become tokens.
        optim: the optimizer.
        compute: how the model is computed.
        mesh: how devices are divided.
    """

    out: str
    model: str = ""
    dataset: str | None = None
    datasets: tuple[DatasetConfig, ...] = ()
    eval_dataset: str | None = None
    batch_size: int = 32
    micro_batches: int = 1
    epochs: float = 1.0
    steps: int | None = None
    seed: int = 0
    log_every: int = 10
    eval_every: int = 0
    eval_batch_size: int | None = None
    save_every: int = 0
    keep: int = 2
    best_metric: str | None = None
    best_mode: Literal["min", "max"] = "min"
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
    compute: ComputeConfig = dataclasses.field(default_factory=ComputeConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)

    def __post_init__(self) -> None:
        """Checks ranges and combinations that do not need the devices."""
        _check(
            (self.batch_size > 0, f"batch_size={self.batch_size} must be positive"),
            (self.micro_batches > 0, f"micro_batches={self.micro_batches} must be positive"),
            self._divides(),
            (self.epochs > 0, f"epochs={self.epochs} must be positive"),
            (self.steps is None or self.steps > 0, f"steps={self.steps} must be positive"),
            (self.log_every > 0, f"log_every={self.log_every} must be positive"),
            (self.eval_every >= 0, f"eval_every={self.eval_every} must not be negative"),
            (self.save_every >= 0, f"save_every={self.save_every} must not be negative"),
            (self.keep > 0, f"keep={self.keep} must be positive"),
            (not (self.dataset and self.datasets), "dataset and datasets are both given; keep one of them"),
        )

    @property
    def micro_rows(self) -> int:
        """Rows that go through the model at once."""
        return self.batch_size // self.micro_batches

    def _divides(self) -> tuple[bool, str]:
        """Whether the rows of a step can be cut into its parts, and the message if not."""
        parts, rows = max(1, self.micro_batches), self.batch_size
        return rows % parts == 0, f"micro_batches={parts} does not divide batch_size={rows}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SFTConfig(TrainConfig):
    """Supervised fine-tuning."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RewardConfig(TrainConfig):
    """Reward modelling. Pairs and rankings are told apart by the data.

    Attributes:
        center_coef: weight of (chosen + rejected)^2 in the loss of pairs, not negative; 0.01 is usual, 0 is off.
    """

    center_coef: float = 0.0

    def __post_init__(self) -> None:
        """Checks ranges."""
        super().__post_init__()
        _check((self.center_coef >= 0, f"center_coef={self.center_coef} must not be negative"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class DPOConfig(TrainConfig):
    """Direct preference optimisation. The reference is the model that the run starts from, unless one is named.

    Attributes:
        beta: strength of the constraint to the reference, positive.
        reference: another model to take as the reference; None means `model`.
    """

    beta: float = 0.1
    reference: str | None = None

    def __post_init__(self) -> None:
        """Checks ranges."""
        super().__post_init__()
        _check((self.beta > 0, f"beta={self.beta} must be positive"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class PPOOptions:
    """The options of PPO. Defaults are TRL's unless said.

    Attributes:
        kl_coef: price of a nat of KL to the reference in the reward, not negative.
        clip_eps: half-width of the ratio's interval, positive.
        value_clip_eps: how far a value may move in one rollout, positive.
        gamma: discount, in [0, 1].
        lam: trace decay of GAE, in [0, 1].
        whiten_rewards: whether shaped rewards are scaled to variance 1 before GAE.
        missing_eos_penalty: subtracted from the score of an answer that was cut off, not negative.
        epochs: passes over a rollout, positive.
        mini_batches: updates in a pass; divides the answers of a step.
        critic_learning_rate: the critic's highest rate; None means `optim.learning_rate`. It follows the same schedule.
    """

    kl_coef: float = 0.05
    clip_eps: float = 0.2
    value_clip_eps: float = 0.2
    gamma: float = 1.0
    lam: float = 0.95
    whiten_rewards: bool = False
    missing_eos_penalty: float = 0.0
    epochs: int = 4
    mini_batches: int = 1
    critic_learning_rate: float | None = None

    def __post_init__(self) -> None:
        """Checks ranges."""
        _check(
            (self.kl_coef >= 0, f"kl_coef={self.kl_coef} must not be negative"),
            (self.clip_eps > 0, f"clip_eps={self.clip_eps} must be positive"),
            (self.value_clip_eps > 0, f"value_clip_eps={self.value_clip_eps} must be positive"),
            (0 <= self.gamma <= 1, f"gamma={self.gamma} must lie in [0, 1]"),
            (0 <= self.lam <= 1, f"lam={self.lam} must lie in [0, 1]"),
            (self.missing_eos_penalty >= 0, f"missing_eos_penalty={self.missing_eos_penalty} must not be negative"),
            (self.epochs > 0, f"epochs={self.epochs} must be positive"),
            (self.mini_batches > 0, f"mini_batches={self.mini_batches} must be positive"),
        )


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
        _check(
            (self.max_new_tokens > 0, f"max_new_tokens={self.max_new_tokens} must be positive"),
            (self.temperature > 0, f"temperature={self.temperature} must be positive"),
            (self.answers > 0, f"answers={self.answers} must be positive"),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class PPOConfig(TrainConfig):
    """PPO with a KL penalty to a frozen reference. `batch_size` counts prompts.

    Attributes:
        reference: the reference policy; None means `model`.
        reward_model: a reward model to score answers with; it must share the policy's tokenizer.
        rewards: Python rewards, `path.py:function` or `package.module:function`, added to the model's score.
        critic: what the critic starts from; None means the reward model, or without one `model` with a head of zeros.
        ppo: options of the method.
        rollout: how answers are drawn.
        samples_every: steps between two groups of answers written to samples.jsonl; 0 writes none.
    """

    reference: str | None = None
    reward_model: str | None = None
    rewards: tuple[str, ...] = ()
    critic: str | None = None
    ppo: PPOOptions = dataclasses.field(default_factory=PPOOptions)
    rollout: RolloutConfig = dataclasses.field(default_factory=RolloutConfig)
    samples_every: int = 10

    def __post_init__(self) -> None:
        """Checks ranges and combinations."""
        super().__post_init__()
        _check((self.samples_every >= 0, f"samples_every={self.samples_every} must not be negative"))

    @property
    def micro_rows(self) -> int:
        """Answers that go through a model at once."""
        return self.batch_size * self.rollout.answers // (self.ppo.mini_batches * self.micro_batches)

    def _divides(self) -> tuple[bool, str]:
        parts, rows = self.ppo.mini_batches * max(1, self.micro_batches), self.batch_size * self.rollout.answers
        return rows % parts == 0, (
            f"ppo.mini_batches={self.ppo.mini_batches} x micro_batches={self.micro_batches} does not divide the "
            f"{rows} answers of a step (batch_size={self.batch_size} x rollout.answers={self.rollout.answers})"
        )


def _check(*conditions: tuple[bool, str]) -> None:
    problems = [message for holds, message in conditions if not holds]
    if problems:
        raise ValueError("; ".join(problems))
