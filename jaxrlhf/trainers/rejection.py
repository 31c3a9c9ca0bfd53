"""Rejection-sampling fine-tuning (Dong et al. 2023, RAFT; Touvron et al. 2023, Llama 2): `run(config)`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxrlhf.models.decoder import make_model
from jaxrlhf.rewards.functions import RewardFn
from jaxrlhf.sharding.mesh import check_batch
from jaxrlhf.steps.experience import Experience, States
from jaxrlhf.steps.rejection import choose, make_learn
from jaxrlhf.trainers.adapters import bases_of, divide
from jaxrlhf.trainers.judges import make_prompt_loaders, name_judges, take_judges
from jaxrlhf.trainers.play import improve, make_game
from jaxrlhf.trainers.rejection_config import RejectionConfig
from jaxrlhf.trainers.rows import Rows
from jaxrlhf.trainers.run import Trained, open_run
from jaxrlhf.trainers.start import Start, take_start
from jaxrlhf.trainers.state import first_state, make_optimizer, rate_at
from jaxrlhf.types import Hyper, Metrics


def run(
    config: RejectionConfig,
    *,
    model: Start | None = None,
    reward_model: Start | None = None,
    dataset: Rows | None = None,
    eval_dataset: Rows | None = None,
    rewards: Sequence[RewardFn] = (),
) -> Trained:
    """Trains a policy to imitate the best of its own answers.

    A Python reward is called with the whole batch, the answers to a prompt next to each other, so it may compare them.

    Args:
        config: what to do.
        model: a policy in memory, in place of `config.model`.
        reward_model: a reward model in memory, in place of `config.reward_model`.
        dataset: prompts in memory, in place of `config.dataset`.
        eval_dataset: prompts in memory, in place of `config.eval_dataset`.
        rewards: Python rewards, besides those that `config.rewards` names; see `rewards.functions`.

    Returns:
        The trained policy and where it was written.

    Raises:
        ValueError: if nothing gives a reward, models do not fit together, or rows do not divide over the devices.
    """
    functions, weights = name_judges(config, rewards, reward_model)
    options, optimizer = config.rejection, make_optimizer(config.optim)
    with open_run(config) as job:
        check_batch(job.mesh, "kept answers of a micro-batch", config.kept_rows)
        policy = take_start(config.model, model, job.mesh, dtype=config.lora.base)
        params, base = divide(job, policy)
        judges = take_judges(config, job, policy, reward_model, functions, weights)
        train, held_out = make_prompt_loaders(config, job, policy, judges, dataset, eval_dataset)
        frozen = {**judges.frozen, **base}
        bases = bases_of(frozen, "policy")
        states = States({"policy": first_state(job, params, optimizer)})
        choice: dict[str, Any] = {
            "answers": config.rollout.answers,
            "keep": options.keep,
            "min_score": options.min_score,
            "weights": judges.weights,
        }
        learn = make_learn(
            make_model(policy.config, config.compute, config.lora),
            optimizer,
            **choice,
            epochs=options.epochs,
            mini_batches=options.mini_batches,
            micro_batches=config.micro_batches,
            seed=config.seed,
            bases=bases,
        )

        def measure(experience: Experience, hyper: Hyper) -> Metrics:
            del hyper
            return choose(experience, **choice)[1]

        def rates(step: int) -> dict[str, float]:
            return {"learning_rate": rate_at(config.optim, step, job.total)}

        game = make_game(
            job=job,
            config=config,
            policy=policy,
            critic=None,
            judges=judges,
            states=states,
            frozen=frozen,
            bases=bases,
            learn=learn,
            measure=measure,
            constants={},
            only_scored=True,
        )
        return job.finish(policy, improve(game, states, train, held_out, rates))
