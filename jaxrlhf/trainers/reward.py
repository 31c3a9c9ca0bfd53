"""Reward modelling: `run(config)`."""

from __future__ import annotations

from jaxrlhf.models.decoder import make_model
from jaxrlhf.steps.adapters import loss_over
from jaxrlhf.steps.reward import kwise_loss, kwise_totals, pairwise_loss, pairwise_totals
from jaxrlhf.trainers.adapters import bases_of, divide
from jaxrlhf.trainers.config import RewardConfig
from jaxrlhf.trainers.fit import fit
from jaxrlhf.trainers.rows import Rows, make_loaders, reward_batches
from jaxrlhf.trainers.run import Trained, open_run
from jaxrlhf.trainers.start import Start, take_start


def run(
    config: RewardConfig, *, model: Start | None = None, dataset: Rows | None = None, eval_dataset: Rows | None = None
) -> Trained:
    """Trains a reward model on pairs or on rankings, whichever the data hold.

    Args:
        config: what to do.
        model: a model in memory, in place of `config.model`; a language model gets a new scalar head.
        dataset: rows in memory, in place of `config.dataset`.
        eval_dataset: rows in memory, in place of `config.eval_dataset`.

    Returns:
        The trained model and where it was written.
    """
    with open_run(config) as job:
        start = take_start(config.model, model, job.mesh, scalar=True, new_head=True, dtype=config.lora.base)
        params, frozen = divide(job, start, what="reward model")
        kind = reward_batches(config, dataset)
        train, held_out = make_loaders(job, kind, start, dataset, eval_dataset)
        scorer = make_model(start.config, config.compute, config.lora)
        if kind == "scored_pairs":
            loss, totals = pairwise_loss(scorer), pairwise_totals
        else:
            _refuse_centring(config)
            loss, totals = kwise_loss(scorer), kwise_totals
        constants = {"center_coef": config.center_coef}
        loss = loss_over(loss, "scorer", bases_of(frozen, "scorer"))
        params = fit(job, loss, totals, params, train, held_out, frozen=frozen, constants=constants)
        return job.finish(start, params)


def _refuse_centring(config: RewardConfig) -> None:
    if config.center_coef:
        raise ValueError(f"center_coef={config.center_coef} has no effect on rankings, only on pairs; leave it out")
