"""The figure: reward model and gold against the root of the KL to SFT (Gao et al. 2023)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib import pyplot
from matplotlib.axes import Axes

from benchmarks.learning.analyses import Points
from benchmarks.learning.findings import Findings
from benchmarks.learning.stages import FREE


class Look(NamedTuple):
    """How a curve is drawn, in a colour that is legible on white and on near black."""

    label: str
    colour: str
    marker: str


LOOKS = {
    FREE: Look("PPO without KL penalty", "#e0525f", "o"),
    "ppo": Look("PPO", "#3d8fd1", "s"),
    "grpo": Look("GRPO", "#3a9d5d", "^"),
    "best of n": Look("best of n, n = 1 to 16", "#b8860b", ""),
}

NEUTRAL = "#808080"
"""Of text and axes, legible on both too."""


def draw(found: Findings, path: Path) -> None:
    """Draws the mean over seeds of each curve, and behind it a faint line a seed, and writes the figure as SVG."""
    style: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "learning", "font.size": 11}
    inked = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "grid.color")
    with matplotlib.rc_context({**style, **dict.fromkeys(inked, NEUTRAL)}):
        figure, axes = pyplot.subplots(1, 2, figsize=(9.5, 4.2), layout="constrained")
        for axis, name, title in zip(axes, ("reward", "gold"), ("score of the reward model", "gold"), strict=True):
            for run, look in LOOKS.items():
                _draw_curve(axis, [seed["curves"][run] for seed in found["seeds"].values()], name, look)
            axis.set(xlabel="square root of the KL to SFT, nats", title=title)
            axis.grid(alpha=0.25)
            axis.spines[["top", "right"]].set_visible(False)
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(LOOKS), frameon=False)
        figure.savefig(path, transparent=True, metadata={"Date": None})
        pyplot.close(figure)


def _draw_curve(axis: Axes, seeds: Sequence[Points], name: str, look: Look) -> None:
    for points in seeds:
        axis.plot(_root(points["kl"]), points[name], color=look.colour, lw=0.9, alpha=0.45)
    mean: Mapping[str, np.ndarray] = {key: np.mean([points[key] for points in seeds], axis=0) for key in ("kl", name)}
    axis.plot(_root(mean["kl"]), mean[name], color=look.colour, label=look.label, lw=2, marker=look.marker, ms=4)


def _root(kl: Sequence[float] | np.ndarray) -> np.ndarray:
    """An estimate of a small KL may fall below 0."""
    return np.sqrt(np.maximum(kl, 0))
