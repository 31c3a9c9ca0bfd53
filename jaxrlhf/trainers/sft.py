"""Supervised fine-tuning: `run(config)`."""

from __future__ import annotations

from jaxrlhf.models.decoder import make_model
from jaxrlhf.steps.adapters import loss_over
from jaxrlhf.steps.sft import sft_loss, sft_totals
from jaxrlhf.trainers.adapters import bases_of, divide
from jaxrlhf.trainers.config import SFTConfig
from jaxrlhf.trainers.fit import fit
from jaxrlhf.trainers.rows import Rows, make_loaders
from jaxrlhf.trainers.run import Trained, open_run
from jaxrlhf.trainers.start import Start, take_start


def run(
    config: SFTConfig, *, model: Start | None = None, dataset: Rows | None = None, eval_dataset: Rows | None = None
) -> Trained:
    """Fine-tunes a language model on demonstrations.

    Args:
        config: what to do.
        model: a model in memory, in place of `config.model`.
        dataset: rows in memory, in place of `config.dataset`.
        eval_dataset: rows in memory, in place of `config.eval_dataset`.

    Returns:
        The trained model and where it was written.
    """
    with open_run(config) as job:
        start = take_start(config.model, model, job.mesh, dtype=config.lora.base)
        params, frozen = divide(job, start)
        train, held_out = make_loaders(job, "tokens", start, dataset, eval_dataset)
        policy = make_model(start.config, config.compute, config.lora)
        loss = loss_over(sft_loss(policy), "policy", bases_of(frozen, "policy"))
        params = fit(job, loss, sft_totals, params, train, held_out, frozen=frozen)
        return job.finish(start, params)
