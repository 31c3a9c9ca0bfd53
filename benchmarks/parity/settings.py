"""The hyper-parameters that both libraries are given, in one place."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """A run of SFT, reward modelling, DPO or KTO.

    Attributes:
        steps: optimizer steps.
        rows: rows of a step.
        parts: micro-batches of a step (TRL: gradient accumulation).
        data: rows of the data set; a run of more than `data / rows` steps sees them shuffled anew.
        learning_rate: the highest rate.
        schedule: "constant", "linear" or "cosine".
        b1: decay of the first moment.
        b2: decay of the second moment.
        eps: added to the root of the second moment.
        weight_decay: decoupled decay.
        max_grad_norm: the gradient is clipped to this norm; small enough to bind.
        beta: of DPO and KTO.
        center_coef: of the reward model.
        desirable_weight: of KTO; not 1, to be seen.
        seed: of the order of rows.
    """

    steps: int = 50
    rows: int = 8
    parts: int = 1
    data: int = 200
    learning_rate: float = 3e-3
    schedule: str = "linear"
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    max_grad_norm: float = 0.1
    beta: float = 0.1
    center_coef: float = 0.01
    desirable_weight: float = 1.25
    seed: int = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampled:
    """A run of GRPO or PPO.

    Attributes:
        steps: rollouts.
        prompts: prompts of a rollout.
        answers: answers to each prompt.
        length: tokens of the longest answer.
        data: prompts of the data set.
        learning_rate: constant.
        epochs: passes over a rollout.
        kl_coef: price of a nat.
        kl: the KL term of GRPO's loss: "unbiased" or "k3".
        lam: trace decay of GAE.
        b1: decay of the first moment.
        b2: decay of the second moment.
        eps: added to the root of the second moment.
        max_grad_norm: for GRPO; TRL's PPO does not clip.
        seed: of the order of prompts and of the answers.
    """

    steps: int = 50
    prompts: int = 8
    answers: int = 8
    length: int = 12
    data: int = 200
    learning_rate: float = 1e-3
    epochs: int = 1
    kl_coef: float = 0.05
    kl: str = "unbiased"
    lam: float = 0.95
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    max_grad_norm: float = 1.0
    seed: int = 0
