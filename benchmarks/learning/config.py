"""Options of the learning table."""

from __future__ import annotations

import dataclasses

from benchmarks.learning.stages import EVALUATE_EVERY
from jaxrlhf.config_checks import check
from jaxrlhf.demo.config import DemoConfig, Sizes


@dataclasses.dataclass(frozen=True, kw_only=True)
class LearningConfig:
    """What to run, and where.

    Attributes:
        out: folder of the runs and of what they found.
        seeds: of the demo; each gives every row of the table.
        sweep_seeds: seeds that the step sizes of PPO are swept for.
        sizes: of models and stages, as in the demo; `ppo_steps` a multiple of 10.
    """

    out: str = "runs/learning"
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    sweep_seeds: tuple[int, ...] = (0,)
    sizes: Sizes = dataclasses.field(default_factory=Sizes)

    def __post_init__(self) -> None:
        """Checks the range."""
        steps, every = self.sizes.ppo_steps, EVALUATE_EVERY
        why = f"must be a multiple of {every}, where the run without a KL penalty is saved and judged"
        check(self, (steps % every == 0, f"sizes.ppo_steps={steps} {why}"))

    def demo(self, seed: int) -> DemoConfig:
        """The demo that the rows of a seed are built on; its runs lie in a folder of their own."""
        return DemoConfig(out=f"{self.out}/seed-{seed}", seed=seed, sizes=self.sizes)
