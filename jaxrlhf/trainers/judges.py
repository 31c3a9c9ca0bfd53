"""Who scores answers during training: a reward model, Python rewards, and the weight of each."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import jax.numpy as jnp

from jaxrlhf.data.loader import Loader
from jaxrlhf.rewards.functions import RewardFn, check_columns, load_reward, name_rewards
from jaxrlhf.trainers.rollout_config import RolloutTrainConfig
from jaxrlhf.trainers.rows import Rows, make_loaders
from jaxrlhf.trainers.run import Run
from jaxrlhf.trainers.start import Start, check_positions, check_same_tokens, take_start
from jaxrlhf.types import Params


class NamesRewards(Protocol):
    """A config that names rewards; see `RolloutTrainConfig`."""

    @property
    def reward_model(self) -> str | None:
        """A reward model."""
        ...

    @property
    def rewards(self) -> tuple[str, ...]:
        """Python rewards."""
        ...

    @property
    def reward_weights(self) -> tuple[float, ...]:
        """Factors of all of them."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Judges:
    """Who scores answers.

    Attributes:
        scorer: a reward model, or None.
        functions: Python rewards by name.
        weights: of all rewards by name.
    """

    scorer: Start | None
    functions: Mapping[str, RewardFn]
    weights: Mapping[str, float]

    @property
    def frozen(self) -> dict[str, Params]:
        """The parameters of the reward model, if there is one, under the name that `make_judge` reads."""
        return {} if self.scorer is None else {"scorer": self.scorer.params}


def name_judges(
    config: NamesRewards, rewards: Sequence[RewardFn], reward_model: Start | None, *, prefix: str = ""
) -> tuple[dict[str, RewardFn], dict[str, float]]:
    """Names all rewards, before anything is loaded.

    Args:
        config: what names rewards.
        rewards: functions in memory; those that the config names come after them.
        reward_model: a reward model in memory.
        prefix: what stands before the keys of `config`, for messages: "judge." for `judge.rewards`.

    Returns:
        The Python rewards by name, and the weights of all by name.

    Raises:
        ValueError: if nothing gives a reward, two rewards have one name, or there are not as many weights as rewards.
    """
    if callable(rewards):
        raise TypeError(f"rewards is one function; write rewards=[{getattr(rewards, '__name__', 'f')}]")
    functions = name_rewards([*rewards, *map(load_reward, config.rewards)], taken=["reward_model"])
    has_model = reward_model is not None or config.reward_model is not None
    names = [*(["reward_model"] if has_model else []), *functions]
    if not names:
        raise ValueError(f"nothing gives a reward; set {prefix}reward_model, or {prefix}rewards: [path.py:function]")
    weights = config.reward_weights or (1.0,) * len(names)
    if len(weights) != len(names):
        raise ValueError(
            f"{prefix}reward_weights has {len(weights)} numbers for {len(names)} rewards: {', '.join(names)}"
        )
    return functions, dict(zip(names, weights, strict=True))


def take_judges(
    config: RolloutTrainConfig,
    job: Run,
    policy: Start,
    reward_model: Start | None,
    functions: Mapping[str, RewardFn],
    weights: Mapping[str, float],
) -> Judges:
    """Takes the reward model, in memory or named, if there is one.

    Raises:
        ValueError: if it reads other tokens than the policy.
    """
    scorer = None
    if "reward_model" in weights:
        scorer = take_start(
            config.reward_model, reward_model, job.mesh, what="reward_model", scalar=True, dtype=config.lora.base
        )
        check_same_tokens(policy, scorer, "the reward model")
    return Judges(scorer=scorer, functions=functions, weights=weights)


def make_prompt_loaders(
    config: RolloutTrainConfig,
    job: Run,
    policy: Start,
    judges: Judges,
    dataset: Rows | None,
    eval_dataset: Rows | None,
    *,
    critic: Start | None = None,
) -> tuple[Loader, Loader | None]:
    """The loaders of prompts, which all can answer and judge; see `make_loaders` and `check_judges`."""
    length = config.rollout.max_new_tokens
    loaders = make_loaders(job, "prompts", policy, dataset, eval_dataset, answer=length)
    check_judges(judges, critic, loaders, length)
    return loaders


def check_judges(judges: Judges, critic: Start | None, loaders: Sequence[Loader | None], answer: int) -> None:
    """Checks that all can judge answers to all prompts.

    Args:
        judges: who scores answers.
        critic: the critic, or None.
        loaders: of prompts; None is none.
        answer: tokens of the longest answer.

    Raises:
        ValueError: if a model has too few positions, or a Python reward does not take the columns of the data.
    """
    for loader in loaders:
        if loader is None:
            continue
        check_columns(judges.functions, loader.index.columns)
        for judge in (judges.scorer, critic):
            if judge is not None:
                check_positions(
                    judge, loader.index.report.longest + answer, "use a reward model or critic that has more"
                )


def refuse_nan(scores: Mapping[str, Any]) -> None:
    """Refuses what is no score: from a Python reward NaN says that it has no opinion, from a model that it is broken.

    Args:
        scores: name of a model -> its scores [B].

    Raises:
        ValueError: if one is NaN or infinite.
    """
    for name, values in scores.items():
        if bad := int(jnp.sum(~jnp.isfinite(values))):
            raise ValueError(f"{name} gave NaN or infinity for {bad} of {len(values)} answers; it is not usable")
