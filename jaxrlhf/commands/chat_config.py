"""Options of `jaxrlhf chat`."""

from __future__ import annotations

import dataclasses

from jaxrlhf.commands.config import SamplingConfig, slots_are_used
from jaxrlhf.config_checks import check, positive
from jaxrlhf.models.config import ComputeConfig
from jaxrlhf.sharding.config import MeshConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChatDataConfig:
    """How a conversation becomes a prompt.

    Attributes:
        chat_template: a built-in chat template ("chatml", "alpaca", "hh") or the path of a jinja file; None: the
            tokenizer's own.
    """

    chat_template: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChatConfig:
    """A conversation with a model in the terminal.

    Attributes:
        model: a Hugging Face folder, a hub id, or the folder of a run.
        system: the system prompt, what stands before the conversation; None means none.
        answers: answers that are drawn to each message, positive; of several, the reward model chooses the one that
            counts.
        reward_model: a reward model that scores answers; it must share the policy's tokenizer.
        plain: whether the model goes on with the text that is typed, without turns or a chat template, as models do
            that were trained on texts alone.
        sampling: how answers are drawn; answers are shown every `chunk` tokens.
        data: how the conversation becomes a prompt.
        compute: how models are computed.
        mesh: how devices are divided.
    """

    model: str
    system: str | None = None
    answers: int = 1
    reward_model: str | None = None
    plain: bool = False
    sampling: SamplingConfig = dataclasses.field(default_factory=lambda: SamplingConfig(max_new_tokens=512, chunk=4))
    data: ChatDataConfig = dataclasses.field(default_factory=ChatDataConfig)
    compute: ComputeConfig = dataclasses.field(default_factory=ComputeConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)

    def __post_init__(self) -> None:
        """Checks ranges, and that what is given has an effect."""
        several = self.answers > 1
        check(
            self,
            *positive(self, "answers"),
            slots_are_used(self.sampling, self.answers),
            (
                not several or self.reward_model is not None,
                f"answers={self.answers} needs a reward_model, which chooses among them",
            ),
            (
                not several or self.sampling.temperature > 0,
                f"sampling.temperature=0 draws the same answer {self.answers} times; use a positive one",
            ),
            (
                not self.plain or self.system is None,
                "system has no effect with plain=true, which has no turns; type it as the text to begin with",
            ),
            (
                not self.plain or self.data.chat_template is None,
                f"data.chat_template={self.data.chat_template} has no effect with plain=true; keep one of them",
            ),
            (self.system is None or bool(self.system.strip()), "system is empty; leave it out"),
        )
