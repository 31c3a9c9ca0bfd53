"""What a training run is told, for each method. Every field is read by the trainer of its class."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

from jaxrlhf.config_checks import Condition, check, not_negative, positive
from jaxrlhf.data.config import DataConfig, DatasetConfig
from jaxrlhf.models.config import ComputeConfig
from jaxrlhf.sharding.config import MeshConfig

Schedule = Literal["constant", "linear", "cosine"]
"""The shapes that `optim.SCHEDULES` computes."""

Extreme = Literal["min", "max"]


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
        check(
            self,
            *positive(self, "learning_rate", "eps", "max_grad_norm"),
            *not_negative(self, "warmup_steps", "weight_decay"),
            (0 <= self.b1 < 1, f"b1={self.b1} must lie in [0, 1)"),
            (0 <= self.b2 < 1, f"b2={self.b2} must lie in [0, 1)"),
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
        batch_size: rows of a step, over all devices; positive.
        micro_batches: parts that a step is computed in, one after another, to save memory; divides `batch_size`.
        epochs: passes over the data, where `steps` does not say; positive.
        steps: number of steps, positive.
        seed: of data order, sampling and new parameters, from 0 to 2**32 - 1.
        log_every: steps between two lines of metrics, positive.
        eval_every: steps between two evaluations; 0 evaluates before the first step and after the last only.
        eval_batch_size: rows of an evaluation batch, over all devices; None means those of a micro-batch.
        save_every: steps between two checkpoints; 0 saves after the last step only.
        keep: number of checkpoints to keep, positive, the best one besides.
        best_metric: evaluation metric by which the exported step is chosen, e.g. `eval/loss`; None exports the last.
        best_mode: whether the smallest or the largest value of `best_metric` is the best; None means "min".
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
    best_mode: Extreme | None = None
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
    compute: ComputeConfig = dataclasses.field(default_factory=ComputeConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)

    def __post_init__(self) -> None:
        """Checks ranges and combinations that do not need the devices."""
        check(
            self,
            *positive(self, "batch_size", "micro_batches", "epochs", "steps", "log_every", "eval_batch_size", "keep"),
            *not_negative(self, "eval_every", "save_every"),
            (0 <= self.seed < 2**32, f"seed={self.seed} must lie in 0 ... 2**32 - 1"),
            self._divides(),
            (self.steps is None or self.epochs == 1.0, f"epochs={self.epochs} has no effect beside steps; keep one"),
            (not (self.dataset and self.datasets), "dataset and datasets are both given; keep one of them"),
            (
                self.best_mode is None or self.best_metric is not None,
                f"best_mode={self.best_mode} has no effect without best_metric; name one, such as eval/loss, or leave "
                "best_mode out",
            ),
        )

    @property
    def micro_rows(self) -> int:
        """Rows that go through the model at once."""
        return self.batch_size // self.micro_batches

    @property
    def eval_rows(self) -> int:
        """Rows of an evaluation batch."""
        return self.micro_rows if self.eval_batch_size is None else self.eval_batch_size

    @property
    def best_is(self) -> Extreme:
        """Whether the smallest or the largest value of `best_metric` is the best."""
        return "min" if self.best_mode is None else self.best_mode

    def _divides(self) -> Condition:
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
        check(self, *not_negative(self, "center_coef"))


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
        check(self, *positive(self, "beta"))


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
        critic_learning_rate: the critic's highest rate, positive; None means `optim.learning_rate`. It follows the same
            schedule.
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
        check(
            self,
            *positive(self, "clip_eps", "value_clip_eps", "epochs", "mini_batches", "critic_learning_rate"),
            *not_negative(self, "kl_coef", "missing_eos_penalty"),
            (0 <= self.gamma <= 1, f"gamma={self.gamma} must lie in [0, 1]"),
            (0 <= self.lam <= 1, f"lam={self.lam} must lie in [0, 1]"),
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
        check(self, *positive(self, "max_new_tokens", "temperature", "answers"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class PPOConfig(TrainConfig):
    """PPO with a KL penalty to a frozen reference.

    `batch_size` and `eval_batch_size` count prompts; the latter is the former unless it is given.

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
        check(self, *not_negative(self, "samples_every"), self._judges_whole_parts())

    @property
    def eval_rows(self) -> int:
        """Prompts of an evaluation batch, whose answers are judged in parts as in training."""
        return self.batch_size if self.eval_batch_size is None else self.eval_batch_size

    @property
    def micro_rows(self) -> int:
        """Answers that go through a model at once."""
        return self.batch_size * self.rollout.answers // (self.ppo.mini_batches * self.micro_batches)

    def _divides(self) -> Condition:
        parts, rows = self.ppo.mini_batches * max(1, self.micro_batches), self.batch_size * self.rollout.answers
        return rows % parts == 0, (
            f"ppo.mini_batches={self.ppo.mini_batches} x micro_batches={self.micro_batches} does not divide the "
            f"{rows} answers of a step (batch_size={self.batch_size} x rollout.answers={self.rollout.answers})"
        )

    def _judges_whole_parts(self) -> Condition:
        """Whether the answers of an evaluation fill the parts of training, or less than one, and the message if not."""
        prompts, answers, part = self.eval_rows, self.rollout.answers, self.micro_rows
        whole = part // math.gcd(part, answers)  # the fewest prompts whose answers fill parts
        return prompts * answers <= part or prompts % whole == 0, (
            f"eval_batch_size={prompts} x rollout.answers={answers} makes {prompts * answers} answers, which are "
            f"judged {part} at a time, as in training (batch_size x rollout.answers over ppo.mini_batches x "
            f"micro_batches); use eval_batch_size={max(whole, prompts // whole * whole)}"
        )
