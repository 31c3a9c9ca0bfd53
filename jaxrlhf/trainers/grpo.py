"""Group relative policy optimisation: `run(config)`."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from jax.sharding import Mesh

from jaxrlhf.data.loader import Loader
from jaxrlhf.data.sharing import sampled_should_share
from jaxrlhf.models.attention import check_attention, why_not_share
from jaxrlhf.models.decoder import make_model
from jaxrlhf.rewards.functions import RewardFn
from jaxrlhf.sharding.mesh import BATCH_AXES, check_batch, divides
from jaxrlhf.steps.experience import Experience, States
from jaxrlhf.steps.grpo import make_learn, make_rollout
from jaxrlhf.trainers.adapters import bases_of, divide
from jaxrlhf.trainers.grpo_config import GRPOConfig
from jaxrlhf.trainers.judges import make_prompt_loaders, name_judges, take_judges
from jaxrlhf.trainers.play import improve, make_game
from jaxrlhf.trainers.rows import Rows
from jaxrlhf.trainers.run import Trained, open_run
from jaxrlhf.trainers.start import Start, take_reference, take_start
from jaxrlhf.trainers.state import first_state, make_optimizer, rate_at
from jaxrlhf.types import Hyper, Metrics

log = logging.getLogger(__name__)


def run(
    config: GRPOConfig,
    *,
    model: Start | None = None,
    reference: Start | None = None,
    reward_model: Start | None = None,
    dataset: Rows | None = None,
    eval_dataset: Rows | None = None,
    rewards: Sequence[RewardFn] = (),
) -> Trained:
    """Trains a policy by comparing its answers to a prompt with each other.

    A Python reward is called with the whole batch, the answers to a prompt next to each other, so it may compare them.

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
        ValueError: if nothing gives a reward, models do not fit together, or a reference would have no effect.
    """
    functions, weights = name_judges(config, rewards, reward_model)
    options, optimizer = config.grpo, make_optimizer(config.optim)
    if reference is not None and not options.kl_coef:
        raise ValueError("a reference has no effect at grpo.kl_coef=0; set one, or leave the other out")
    with open_run(config) as job:
        if options.share_prompts:
            _check_sharing(config, job.mesh)
        policy = take_start(config.model, model, job.mesh, dtype=config.lora.base)
        params, base = divide(job, policy)
        judges = take_judges(config, job, policy, reward_model, functions, weights)
        named = {}
        if options.kl_coef:
            named = take_reference(config.reference, reference, policy, config.lora, job.mesh, model=config.model)
        train, held_out = make_prompt_loaders(config, job, policy, judges, dataset, eval_dataset)
        frozen = {**judges.frozen, **named, **base}
        bases = bases_of(frozen, *(["policy", "reference"] if options.kl_coef else ["policy"]))
        states = States({"policy": first_state(job, params, optimizer)})
        grouping = {
            "answers": config.rollout.answers,
            "baseline": options.baseline,
            "scale": options.scale_rewards,
            "weights": judges.weights,
        }
        share_prompts = _shares_prompts(config, policy, train, job.mesh)
        learn = make_learn(
            make_model(policy.config, config.compute, config.lora),
            optimizer,
            **grouping,
            reduction=options.reduction,
            kl=options.kl if options.kl_coef else None,
            epochs=options.epochs,
            mini_batches=options.mini_batches,
            micro_batches=config.micro_batches,
            seed=config.seed,
            bases=bases,
        )

        def measure(experience: Experience, hyper: Hyper) -> Metrics:
            del hyper
            return make_rollout(experience, **grouping)[1]

        def rates(step: int) -> dict[str, float]:
            return {"learning_rate": rate_at(config.optim, step, job.total)}

        constants = {"kl_coef": options.kl_coef, "clip_low": options.clip_low, "clip_high": options.clip_high}
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
            constants=constants,
            share_prompts=share_prompts,
        )
        return job.finish(policy, improve(game, states, train, held_out, rates))


def _check_sharing(config: GRPOConfig, mesh: Mesh) -> None:
    """Refuses `grpo.share_prompts` where the devices cannot have it."""
    check_attention(mesh, config.compute, prefixes=True)
    check_batch(mesh, "prompts of a micro-batch (grpo.share_prompts)", config.micro_prompts)


def _shares_prompts(config: GRPOConfig, policy: Start, train: Loader, mesh: Mesh) -> bool:
    """Whether the answers to a prompt share its row: what the config says or, if nothing, where it is a mere gain."""
    asked, answers = config.grpo.share_prompts, config.rollout.answers
    why = _why_apart(config, policy, train, mesh) if asked is None else None if asked else "grpo.share_prompts=false"
    if why is None:
        log.info("the %d answers to a prompt share its row", answers)
    else:
        log.info("the %d answers to a prompt have a row each: %s", answers, why)
    return why is None


def _why_apart(config: GRPOConfig, policy: Start, train: Loader, mesh: Mesh) -> str | None:
    length, answers = config.rollout.max_new_tokens, config.rollout.answers
    if not config.cuts_do_not_matter:
        return "which of them an update takes together matters to what is learned"
    if not (config.cuts_whole_groups and divides(config.micro_prompts, BATCH_AXES, mesh.shape)):
        return f"the {config.batch_size} prompts of a step do not divide over its micro-batches and the devices"
    if attention := why_not_share(policy.config, config.compute, train.widths[-1].tokens - 1 + length):
        return attention
    if not sampled_should_share(train.index, config.data.buckets, answers=answers, length=length):
        return "one of all would cost more"
    return None
