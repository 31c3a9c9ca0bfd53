"""What a training run is told, for each method. Every field is read by the trainer of its class."""

from __future__ import annotations

import dataclasses
import typing
from typing import Any, Literal

from jaxrlhf.config_checks import Condition, check, not_negative, positive
from jaxrlhf.data.config import DataConfig, DatasetConfig
from jaxrlhf.models.config import ComputeConfig
from jaxrlhf.models.lora_config import LoraConfig
from jaxrlhf.sharding.config import MeshConfig

Schedule = Literal["constant", "linear", "cosine"]
"""The shapes that `optim.SCHEDULES` computes."""

Extreme = Literal["min", "max"]

FEW_STEPS = 10
"""Runs of fewer steps teach next to nothing, and are warned of."""

TrackerName = Literal["tensorboard", "wandb"]
"""What `trackers.open_trackers` opens."""


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


def default_rate(learning_rate: float) -> Any:
    """The field `optim` of a method whose usual learning rate, which is TRL's default, is this one."""
    return dataclasses.field(default_factory=lambda: OptimConfig(learning_rate=learning_rate))


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What every training run is told.

    Attributes:
        out: folder of the run: config.yaml, metrics.jsonl, events.jsonl, histograms.jsonl, samples.jsonl,
            checkpoints/, export/. The same command run again goes on from the last checkpoint in it.
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
        trackers: where metrics go besides metrics.jsonl: "tensorboard", files in tensorboard/ of `out`; "wandb",
            Weights & Biases, as its environment variables say. Each needs the extra of its name.
        eval_every: steps between two evaluations; 0 evaluates before the first step and after the last only.
        eval_batch_size: rows of an evaluation batch, over all devices; None means those of a micro-batch.
        save_every: steps between two checkpoints, from which an interrupted run goes on; 0 saves after the last step
            only.
        keep: number of checkpoints to keep, positive, the best one besides.
        best_metric: evaluation metric by which the exported step is chosen, e.g. `eval/loss`; None exports the last.
        best_mode: whether the smallest or the largest value of `best_metric` is the best; of a loss it is the smallest.
        data: how rows become tokens.
        optim: the optimizer.
        lora: adapters to train in place of the model's own parameters; off without a rank. `export/` then holds the
            adapters alone, in the layout of PEFT.
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
    trackers: tuple[TrackerName, ...] = ()
    eval_every: int = 0
    eval_batch_size: int | None = None
    save_every: int = 500
    keep: int = 2
    best_metric: str | None = None
    best_mode: Extreme | None = None
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
    lora: LoraConfig = dataclasses.field(default_factory=LoraConfig)
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
            self._trackers_are_known(),
            (self.steps is None or self.epochs == 1.0, f"epochs={self.epochs} has no effect beside steps; keep one"),
            (not (self.dataset and self.datasets), "dataset and datasets are both given; keep one of them"),
            (
                self.best_metric is None or self.best_metric.endswith("loss") or self.best_mode is not None,
                f"best_metric={self.best_metric} is no loss; say whether its min or its max is the best in best_mode",
            ),
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

    def _trackers_are_known(self) -> Condition:
        """Whether each tracker is one, and named once, and the message if not."""
        known = typing.get_args(TrackerName)
        once = len(set(self.trackers)) == len(self.trackers)
        return once and set(self.trackers) <= set(known), (
            f"trackers={self.trackers!r}: expected a list of {', '.join(map(repr, known))}, each once at most"
        )

    def _divides(self) -> Condition:
        """Whether the rows of a step can be cut into its parts, and the message if not."""
        parts, rows = max(1, self.micro_batches), self.batch_size
        return rows % parts == 0, f"micro_batches={parts} does not divide batch_size={rows}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SFTConfig(TrainConfig):
    """Supervised fine-tuning."""

    optim: OptimConfig = default_rate(2e-5)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RewardConfig(TrainConfig):
    """Reward modelling. Pairs and rankings are told apart by the data.

    Attributes:
        center_coef: weight of (chosen + rejected)^2 in the loss of pairs, not negative; 0.01 is usual, 0 is off.
    """

    optim: OptimConfig = default_rate(1e-4)
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

    optim: OptimConfig = default_rate(1e-6)
    beta: float = 0.1
    reference: str | None = None

    def __post_init__(self) -> None:
        """Checks ranges."""
        super().__post_init__()
        check(self, *positive(self, "beta"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class KTOConfig(TrainConfig):
    """Kahneman-Tversky optimisation. The reference is the model that the run starts from, unless one is named.

    The rows of a batch lend each other their answers to estimate the KL to the reference, so a batch has two at least,
    and the more the better.

    Attributes:
        beta: strength of the constraint to the reference, positive.
        desirable_weight: weight of good answers, positive.
        undesirable_weight: weight of bad answers, positive.
        reference: another model to take as the reference; None means `model`.
    """

    optim: OptimConfig = default_rate(1e-6)
    beta: float = 0.1
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0
    reference: str | None = None

    def __post_init__(self) -> None:
        """Checks ranges."""
        super().__post_init__()
        check(
            self,
            *positive(self, "beta", "desirable_weight", "undesirable_weight"),
            *(
                (getattr(self, name) != 1, f"{name}=1 leaves no other row to estimate the KL with; use 2 or more")
                for name in ("batch_size", "eval_batch_size")
            ),
        )

    @property
    def eval_rows(self) -> int:
        """Rows of an evaluation batch; two at least, though a micro-batch of training may be a single one."""
        return max(2, super().eval_rows)
