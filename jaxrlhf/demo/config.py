"""Options of the demo."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """The whole road on a toy language.

    Attributes:
        out: folder of the runs of all stages. Running again goes on where it stopped.
        seed: of everything; the same seed gives the same table.
        ppo_steps: iterations of PPO; fewer are quicker and reach less.
    """

    out: str = "runs/demo"
    seed: int = 0
    ppo_steps: int = 60
