"""Options of the demo."""

from __future__ import annotations

import dataclasses

from jaxrlhf.config_checks import check, not_negative, positive

HELD_OUT_PROMPTS = 256
"""Prompts that no stage trains on."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """How large the models are and how long the stages; the table of `docs/demo.md` holds for the defaults.

    Attributes:
        hidden_size: width of the models, a multiple of 8.
        layers: blocks of the models, positive.
        pretraining_steps: steps of pretraining, positive.
        sft_steps: steps of fine-tuning, positive.
        ranked_prompts: prompts whose answers are ranked, for the reward model and DPO.
        reward_steps: steps of the reward model, positive.
        ppo_steps: iterations of PPO, positive.
        dpo_steps: steps of DPO, positive.
        held_out_prompts: prompts to evaluate on, from 3 to 256.
    """

    hidden_size: int = 96
    layers: int = 3
    pretraining_steps: int = 900
    sft_steps: int = 100
    ranked_prompts: int = 6400
    reward_steps: int = 800
    ppo_steps: int = 40
    dpo_steps: int = 100
    held_out_prompts: int = HELD_OUT_PROMPTS

    def __post_init__(self) -> None:
        """Checks ranges."""
        check(
            self,
            *positive(self, *vars(self)),
            (
                self.hidden_size % 8 == 0,
                f"hidden_size={self.hidden_size} must be a multiple of 8: four heads of even size",
            ),
            (
                3 <= self.held_out_prompts <= HELD_OUT_PROMPTS,
                f"held_out_prompts={self.held_out_prompts} must lie in 3 ... {HELD_OUT_PROMPTS}",
            ),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """The whole road on a toy language.

    Attributes:
        out: folder of the runs of all stages. Running again goes on where it stopped.
        seed: of everything, not negative; the same seed gives the same table.
        sizes: of models and stages; smaller is quicker and reaches less.
    """

    out: str = "runs/demo"
    seed: int = 0
    sizes: Sizes = dataclasses.field(default_factory=Sizes)

    def __post_init__(self) -> None:
        """Checks the range."""
        check(self, *not_negative(self, "seed"))
