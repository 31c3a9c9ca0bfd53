"""Options of the commands that do not train."""

from __future__ import annotations

import dataclasses
from typing import Literal

from jaxrlhf.config_checks import Condition, check, not_negative, positive
from jaxrlhf.data.config import DataConfig
from jaxrlhf.models.config import ComputeConfig, ExportDType
from jaxrlhf.sharding.config import MeshConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    r"""How answers are drawn.

    Attributes:
        max_new_tokens: tokens of the longest answer, positive.
        min_new_tokens: tokens that an answer has before an end-of-sequence token may end it, from 0 to max_new_tokens.
        temperature: divides the logits, not negative; 0 takes the most likely token.
        top_k: draws among the k most likely tokens, not negative; 0 means all.
        top_p: draws among the fewest tokens whose probability reaches p, in (0, 1].
        min_p: draws among tokens at least min_p times as probable as the most likely one, in [0, 1]; 0 means all.
        repetition_penalty: makes tokens that the prompt or the answer holds already less likely, by dividing their
            positive logits and multiplying their negative ones; positive, 1 changes nothing.
        forbidden: tokens that are never drawn, each by its name in the vocabulary, or as text that is one token, as in
            'sampling.forbidden=["<unk>", " never"]'.
        stop: texts that end an answer, as in 'sampling.stop=["\n\n", "Human:"]'. An answer ends with the token that
            completes one, and its text before the first.
        seed: of the draws, not negative.
        draw: "gumbel", which rounding hardly ever changes, or "cumulative", which needs one random number a token.
        slots: answers of a batch that are decoded side by side, positive; as one ends, the next begins. None means all.
        chunk: tokens of an answer between two looks at it, which stop strings and progress wait for, positive.
        prefill_chunk: tokens of a prompt that go through the model at once, which bounds memory; 0 means all.
    """

    max_new_tokens: int = 128
    min_new_tokens: int = 0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    forbidden: tuple[str, ...] = ()
    stop: tuple[str, ...] = ()
    seed: int = 0
    draw: Literal["gumbel", "cumulative"] = "gumbel"
    slots: int | None = None
    chunk: int = 64
    prefill_chunk: int = 0

    def __post_init__(self) -> None:
        """Checks ranges, and that what is given has an effect."""
        given = [name for name in _OF_DRAWS if getattr(self, name) != getattr(SamplingConfig, name)]
        check(
            self,
            *positive(self, "max_new_tokens", "repetition_penalty", "slots", "chunk"),
            *not_negative(self, "min_new_tokens", "temperature", "top_k", "seed", "prefill_chunk"),
            (0 < self.top_p <= 1, f"top_p={self.top_p} must lie in (0, 1]"),
            (0 <= self.min_p <= 1, f"min_p={self.min_p} must lie in [0, 1]"),
            (
                self.min_new_tokens <= self.max_new_tokens,
                f"min_new_tokens={self.min_new_tokens} must be at most max_new_tokens={self.max_new_tokens}",
            ),
            (all(self.forbidden), f"forbidden={[*self.forbidden]} holds an empty text, which is no token"),
            (
                all(self.stop) and "\ufffd" not in "".join(self.stop),
                f"stop={[*self.stop]} must hold texts that are not empty, without U+FFFD, which is no text",
            ),
            (
                self.temperature != 0 or not given,
                f"{', '.join(given)}: no effect at temperature=0, which draws nothing; leave out",
            ),
        )


_OF_DRAWS = ("top_k", "top_p", "min_p", "draw", "seed")
"""The options of `SamplingConfig` that choose among several tokens."""


def slots_are_used(sampling: SamplingConfig, answers: int) -> Condition:
    """The condition that as many answers as there are slots, where a number is asked for, are drawn at once."""
    slots = sampling.slots
    return slots is None or slots <= answers, (
        f"sampling.slots={slots} has no effect on {answers} answers, which are all that are drawn at once; leave it out"
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """Answers to a file of prompts.

    Attributes:
        model: a Hugging Face folder, a hub id, or the folder of a run.
        dataset: file, folder or hub id of prompts.
        out: file of JSON lines to write: the prompt's row with `completion`, or `completions` if there are several. It
            must not exist.
        answers: answers to each prompt, positive.
        batch_size: prompts at a time, positive.
        sampling: how answers are drawn.
        data: how rows become prompts.
        compute: how the model is computed.
        mesh: how devices are divided.
    """

    model: str
    dataset: str
    out: str
    answers: int = 1
    batch_size: int = 32
    sampling: SamplingConfig = dataclasses.field(default_factory=SamplingConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    compute: ComputeConfig = dataclasses.field(default_factory=ComputeConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)

    def __post_init__(self) -> None:
        """Checks ranges."""
        check(
            self,
            *positive(self, "answers", "batch_size"),
            slots_are_used(self.sampling, self.answers * self.batch_size),
            (
                self.answers == 1 or self.sampling.temperature > 0,
                f"sampling.temperature=0 draws the same answer {self.answers} times; use a positive one, or answers=1",
            ),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class JudgeConfig:
    """Rewards that say what the chosen answers are worth, and have no say in the choice.

    Attributes:
        reward_model: a reward model; it must share the policy's tokenizer.
        rewards: Python rewards, `path.py:function` or `package.module:function`, added to the reward model's score.
        reward_weights: factors of the rewards, the reward model's first if there is one; none means 1 each.
    """

    reward_model: str | None = None
    rewards: tuple[str, ...] = ()
    reward_weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Checks that weights have something to weigh."""
        check(
            self,
            (
                self.given or not self.reward_weights,
                f"reward_weights={[*self.reward_weights]} has no effect without a judge; set judge.reward_model or "
                "judge.rewards",
            ),
        )

    @property
    def given(self) -> bool:
        """Whether there is a judge."""
        return self.reward_model is not None or bool(self.rewards)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BestOfNConfig:
    """The best of several answers to each prompt of a file, and what the best of fewer would be worth.

    Attributes:
        model: a Hugging Face folder, a hub id, or the folder of a run.
        dataset: file, folder or hub id of prompts.
        out: file of JSON lines to write, which must not exist: the prompt's row with `completion`, the best answer, and
            its `score`.
        answers: answers to each prompt, at least 2.
        reward_model: a reward model to score answers with; it must share the policy's tokenizer.
        rewards: Python rewards, `path.py:function` or `package.module:function`. An answer's score is the sum of all
            rewards that have an opinion on it.
        reward_weights: factors of the rewards, the reward model's first if there is one; none means 1 each.
        judge: other rewards, to value what was chosen.
        keep_all: whether rows have all answers, as `completions` with `scores` and `ranks`, in place of the best.
        summary: file to write to as JSON what the best of 1, 2, ... answers is worth, which must not exist; None writes
            none. It is printed either way.
        batch_size: prompts at a time, positive.
        sampling: how answers are drawn.
        data: how rows become prompts.
        compute: how models are computed.
        mesh: how devices are divided.
    """

    model: str
    dataset: str
    out: str
    answers: int = 16
    reward_model: str | None = None
    rewards: tuple[str, ...] = ()
    reward_weights: tuple[float, ...] = ()
    judge: JudgeConfig = dataclasses.field(default_factory=JudgeConfig)
    keep_all: bool = False
    summary: str | None = None
    batch_size: int = 32
    sampling: SamplingConfig = dataclasses.field(default_factory=SamplingConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    compute: ComputeConfig = dataclasses.field(default_factory=ComputeConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)

    def __post_init__(self) -> None:
        """Checks ranges, and that there is something to choose among."""
        check(
            self,
            *positive(self, "batch_size"),
            slots_are_used(self.sampling, self.answers * self.batch_size),
            (self.answers > 1, f"answers={self.answers} leaves nothing to choose among; use 2 or more"),
            (
                self.sampling.temperature > 0,
                "sampling.temperature=0 draws the same answer every time; use a positive one",
            ),
            (self.summary is None or self.summary != self.out, f"summary and out are both {self.out}; name two files"),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """A measure of a model.

    Attributes:
        measure: "perplexity" of a language model on texts; "accuracy" of a reward model on comparisons; "win_rate" of a
            policy against another on prompts.
        model: the model in question: a Hugging Face folder, a hub id, or the folder of a run.
        dataset: file, folder or hub id to measure on.
        against: win rate: the other policy.
        reward_model: win rate: the reward model that decides.
        rewards: win rate: Python rewards that decide, `path.py:function`, added to the reward model's score.
        reward_weights: win rate: factors of the rewards, the reward model's first if there is one; none means 1 each.
        out: file to write the result to as JSON, which must not exist; None writes none.
        batch_size: rows at a time, positive.
        sampling: win rate: how answers are drawn.
        data: how rows become tokens.
        compute: how models are computed.
        mesh: how devices are divided.
    """

    measure: Literal["perplexity", "accuracy", "win_rate"]
    model: str
    dataset: str
    against: str | None = None
    reward_model: str | None = None
    rewards: tuple[str, ...] = ()
    reward_weights: tuple[float, ...] = ()
    out: str | None = None
    batch_size: int = 32
    sampling: SamplingConfig = dataclasses.field(default_factory=SamplingConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    compute: ComputeConfig = dataclasses.field(default_factory=ComputeConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)

    def __post_init__(self) -> None:
        """Checks that what is given has an effect, and what is needed is given."""
        given = [name for name in ("against", "reward_model", "rewards", "reward_weights") if getattr(self, name)]
        if self.sampling != SamplingConfig():
            given.append("sampling")
        decided = self.against is not None and bool(self.reward_model or self.rewards)
        check(
            self,
            *positive(self, "batch_size"),
            slots_are_used(self.sampling, self.batch_size),
            (
                self.measure not in ("perplexity", "accuracy") or not given,
                f"{', '.join(given)}: no effect on measure={self.measure}; leave out",
            ),
            (self.measure != "win_rate" or decided, "measure=win_rate needs against, and reward_model or rewards"),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """A checkpoint of a run as a Hugging Face folder.

    Attributes:
        run: folder of the run.
        out: folder to write; it must not exist.
        step: checkpoint to take, positive; None means the newest.
        merge: whether adapters are added to the matrices that they stand beside, and the whole model is written.
        base: what the run was started from, if that is no longer where it was: a folder or a hub id.
        dtype: of the written weights; "bfloat16" and "float16" round.
    """

    run: str
    out: str
    step: int | None = None
    merge: bool = False
    base: str | None = None
    dtype: ExportDType = "float32"

    def __post_init__(self) -> None:
        """Checks the range and the choice."""
        check(self, *positive(self, "step"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """A page about a run, or about several beside each other.

    Attributes:
        runs: folders of runs, or folders whose subfolders are runs.
        out: HTML file to write, in place of an earlier one; None means report.html in the folder, if a single one is
            given.
    """

    runs: tuple[str, ...] = ()
    out: str | None = None

    def __post_init__(self) -> None:
        """Checks that there is something to show, and a place for it that is no other file."""
        check(
            self,
            (bool(self.runs), "name a run: jaxrlhf report runs/ppo"),
            (self.out is not None or len(self.runs) < 2, "out is not set; name a file for a report on several folders"),
            (self.out is None or self.out.endswith(".html"), f"out={self.out} must end in .html"),
        )
