"""What every method is told that learns from its own answers: PPO, GRPO, rejection sampling."""

from __future__ import annotations

import abc
import dataclasses
import math
from typing import Literal

from jaxrlhf.config_checks import Condition, check, not_negative, positive
from jaxrlhf.models.lora_config import LoraConfig
from jaxrlhf.trainers.config import TrainConfig

MOST_CUT_OFF = 0.9
"""The share of answers that may be cut off without a warning: of more, rewards judge little but halves."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RolloutConfig:
    """How answers are drawn during training.

    Attributes:
        max_new_tokens: tokens of the longest answer, positive.
        temperature: divides the logits, of the log-probabilities in the losses too; positive.
        answers: answers to each prompt of a batch, positive. A prompt is prefilled once.
        draw: "gumbel", which rounding hardly ever changes, or "cumulative", which needs one random number a token.
        slots: answers of a batch that are decoded side by side, positive; as one ends, the next begins. None means all.
        chunk: tokens of an answer between two looks at which slots are free, positive.
        prefill_chunk: tokens of a prompt that go through the model at once, which bounds memory; 0 means all.
    """

    max_new_tokens: int = 64
    temperature: float = 1.0
    answers: int = 1
    draw: Literal["gumbel", "cumulative"] = "gumbel"
    slots: int | None = None
    chunk: int = 64
    prefill_chunk: int = 0

    def __post_init__(self) -> None:
        """Checks ranges."""
        ranges = positive(self, "max_new_tokens", "temperature", "answers", "slots", "chunk")
        check(self, *ranges, *not_negative(self, "prefill_chunk"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class UpdateOptions:
    """How often a rollout is learned from.

    Attributes:
        epochs: passes over a rollout, positive.
        mini_batches: updates in a pass; divides the answers of a step.
    """

    epochs: int = 1
    mini_batches: int = 1


def without_dropout(lora: LoraConfig) -> Condition:
    """Whether an update is of the network that sampled, so that its first ratio is 1, and the message if not."""
    return lora.dropout == 0, (
        f"lora.dropout={lora.dropout}: the update would be of another network than the one that sampled; leave it out"
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class RolloutTrainConfig(TrainConfig, abc.ABC):
    """What the methods share. `batch_size` and `eval_batch_size` count prompts; the latter is the former unless given.

    Attributes:
        reward_model: a reward model to score answers with; it must share the policy's tokenizer.
        rewards: Python rewards, `path.py:function` or `package.module:function`. An answer's score is the sum of all
            rewards that have an opinion on it.
        reward_weights: factors of the rewards, the reward model's first if there is one; none means 1 each.
        rollout: how answers are drawn.
        samples_every: steps between two groups of training answers written to samples.jsonl; 0 writes none, those of
            evaluations neither.
    """

    reward_model: str | None = None
    rewards: tuple[str, ...] = ()
    reward_weights: tuple[float, ...] = ()
    rollout: RolloutConfig = dataclasses.field(default_factory=RolloutConfig)
    samples_every: int = 10

    def __post_init__(self) -> None:
        """Checks ranges and combinations."""
        super().__post_init__()
        check(self, *not_negative(self, "samples_every"), self._judges_whole_parts(), self._uses_slots())

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

    @property
    def learned(self) -> float:
        """The share of a step's answers that its updates take."""
        return 1.0

    def _divides(self) -> Condition:
        updates, rows = self.options.mini_batches, self.batch_size * self.rollout.answers
        return rows % (updates * max(1, self.micro_batches)) == 0, (
            f"mini_batches={updates} x micro_batches={self.micro_batches} does not divide the {rows} answers of a step "
            f"(batch_size={self.batch_size} x rollout.answers={self.rollout.answers})"
        )

    def _uses_slots(self) -> Condition:
        slots, most = self.rollout.slots, max(self.batch_size, self.eval_rows) * self.rollout.answers
        return slots is None or slots <= most, (
            f"rollout.slots={slots} has no effect on {most} answers, which are all that are drawn at once; leave it out"
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
