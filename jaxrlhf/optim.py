"""The optimizer: a direction from optax, a rate from the host.

The direction is AdamW's without its step size; the train step multiplies it by the learning rate, which arrives as a
traced scalar, so a schedule never recompiles anything.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import optax

from jaxrlhf.types import Params

SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda progress: 1.0,
    "linear": lambda progress: 1.0 - progress,
    "cosine": lambda progress: 0.5 * (1.0 + math.cos(math.pi * progress)),
}
"""Name of a schedule -> its share of the peak, where progress goes from 0 after the warmup to 1 at the last step."""


DECAYING = ("kernel", "embedding", "lora_a", "lora_b")
"""Names of leaves with two axes or more a layer."""


def adamw_direction(*, b1: float, b2: float, eps: float, weight_decay: float) -> optax.GradientTransformation:
    """AdamW (Loshchilov and Hutter 2019) up to the learning rate: m / (sqrt(v) + eps) + weight_decay * params.

    Epsilon stands outside the root and after bias correction, as in PyTorch. Only parameters with two axes or more per
    layer decay: norms, biases and scalar gains do not (`decays`).

    Args:
        b1: decay of the first moment, in [0, 1).
        b2: decay of the second moment, in [0, 1).
        eps: added to the root of the second moment.
        weight_decay: decoupled decay, not negative.
    """
    adam = optax.scale_by_adam(b1=b1, b2=b2, eps=eps)
    if weight_decay == 0:
        return adam
    return optax.chain(adam, optax.add_decayed_weights(weight_decay, mask=decays))


def decays(params: Params) -> Params:
    """A tree of bools: True where weight decay applies, at matrices, embeddings and adapters."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key in DECAYING, params)


def learning_rate(step: int, *, peak: float, warmup_steps: int, total_steps: int, schedule: str) -> float:
    """The learning rate of a step.

    Warmup is linear, from peak / warmup_steps at step 0 to the peak (transformers starts at 0, which wastes a step);
    then "linear" and "cosine" fall to 0 at `total_steps`.

    Args:
        step: number of steps taken before this one.
        peak: the highest rate.
        warmup_steps: steps until the peak, 0 for none.
        total_steps: steps of the whole run.
        schedule: shape after the warmup, a key of `SCHEDULES`.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    return peak * SCHEDULES[schedule](progress)
