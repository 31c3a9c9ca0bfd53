"""PPO with a KL penalty to a frozen reference: `run(config)`."""

from __future__ import annotations

from collections.abc import Sequence

from jaxrlhf.models.decoder import make_model
from jaxrlhf.rewards.functions import RewardFn
from jaxrlhf.steps.experience import Experience
from jaxrlhf.steps.ppo import make_learn, make_rollout
from jaxrlhf.trainers.judges import Judges, check_judges, name_judges, take_judges
from jaxrlhf.trainers.play import improve, make_game
from jaxrlhf.trainers.ppo_config import PPOConfig
from jaxrlhf.trainers.rows import Rows, make_loaders
from jaxrlhf.trainers.run import Run, Trained, open_run
from jaxrlhf.trainers.start import Start, check_same_tokens, load_start, take_reference, take_start
from jaxrlhf.trainers.state import first_state, make_optimizer, rate_at
from jaxrlhf.types import Hyper, Metrics


def run(
    config: PPOConfig,
    *,
    model: Start | None = None,
    reference: Start | None = None,
    reward_model: Start | None = None,
    dataset: Rows | None = None,
    eval_dataset: Rows | None = None,
    rewards: Sequence[RewardFn] = (),
) -> Trained:
    """Trains a policy against a reward.

    Args:
        config: what to do.
        model: a policy in memory, in place of `config.model`.
        reference: a reference in memory, in place of `config.reference`.
        reward_model: a reward model in memory, in place of `config.reward_model`.
        dataset: prompts in memory, in place of `config.dataset`.
        eval_dataset: prompts in memory, in place of `config.eval_dataset`.
        rewards: Python rewards, besides those that `config.rewards` names; see `rewards.functions`.

    Returns:
        The trained policy and where it was written.

    Raises:
        ValueError: if nothing gives a reward, or models do not fit together.
    """
    functions, weights = name_judges(config, rewards, reward_model)
    options, optimizer = config.ppo, make_optimizer(config.optim)
    with open_run(config) as job:
        policy = take_start(config.model, model, job.mesh)
        judges = take_judges(config, job, policy, reward_model, functions, weights)
        frozen = {"reference": take_reference(config.reference, reference, policy, job.mesh)}
        if judges.scorer is not None:
            frozen["scorer"] = judges.scorer.params
        critic = _take_critic(config, job, policy, judges)
        length = config.rollout.max_new_tokens
        train, held_out = make_loaders(job, "prompts", policy, dataset, eval_dataset, answer=length)
        check_judges(judges, critic, [train, held_out], length)
        states = {
            "policy": first_state(job, policy.params, optimizer),
            "critic": first_state(job, critic.params, optimizer),
        }
        learn = make_learn(
            make_model(policy.config, config.compute),
            make_model(critic.config, config.compute),
            optimizer,
            whiten_rewards=options.whiten_rewards,
            epochs=options.epochs,
            mini_batches=options.mini_batches,
            micro_batches=config.micro_batches,
            seed=config.seed,
            weights=judges.weights,
        )
        constants = {
            "kl_coef": options.kl_coef,
            "clip_eps": options.clip_eps,
            "value_clip_eps": options.value_clip_eps,
            "gamma": options.gamma,
            "lam": options.lam,
            "missing_eos_penalty": options.missing_eos_penalty,
        }

        def measure(experience: Experience, hyper: Hyper) -> Metrics:
            return make_rollout(experience, hyper, whiten_rewards=False, weights=judges.weights)[1]

        def rates(step: int) -> dict[str, float]:
            peaks = {"learning_rate": None, "critic_learning_rate": options.critic_learning_rate}
            return {name: rate_at(config.optim, step, job.total, peak) for name, peak in peaks.items()}

        game = make_game(
            job=job,
            config=config,
            policy=policy,
            critic=critic,
            judges=judges,
            states=states,
            frozen=frozen,
            learn=learn,
            measure=measure,
            constants=constants,
        )
        return job.finish(policy, improve(game, states, train, held_out, rates))


def _take_critic(config: PPOConfig, job: Run, policy: Start, judges: Judges) -> Start:
    """The model that is named; else a copy of the reward model, or of the policy's trunk with a head of zeros."""
    if config.critic is None:
        scorer = judges.scorer
        return take_start(None, policy if scorer is None else scorer, job.mesh, scalar=True, new_head=True)
    critic = load_start(config.critic, job.mesh, what="critic", scalar=True, new_head=True)
    check_same_tokens(policy, critic, "the critic")
    return critic
