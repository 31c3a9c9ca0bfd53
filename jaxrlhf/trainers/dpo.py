"""Direct preference optimisation: `run(config)`."""

from __future__ import annotations

from jaxrlhf.models.decoder import make_model
from jaxrlhf.steps.adapters import loss_over
from jaxrlhf.steps.dpo import dpo_totals, preference_loss
from jaxrlhf.trainers.adapters import bases_of, divide
from jaxrlhf.trainers.config import DPOConfig
from jaxrlhf.trainers.fit import fit
from jaxrlhf.trainers.rows import Rows, make_loaders
from jaxrlhf.trainers.run import Trained, open_run
from jaxrlhf.trainers.start import Start, take_reference, take_start


def run(
    config: DPOConfig,
    *,
    model: Start | None = None,
    reference: Start | None = None,
    dataset: Rows | None = None,
    eval_dataset: Rows | None = None,
) -> Trained:
    """Trains a policy on pairs of answers; the reference stays as it is.

    Args:
        config: what to do.
        model: a model in memory, in place of `config.model`.
        reference: a reference in memory, in place of `config.reference`.
        dataset: rows in memory, in place of `config.dataset`.
        eval_dataset: rows in memory, in place of `config.eval_dataset`.

    Returns:
        The trained model and where it was written.
    """
    with open_run(config) as job:
        start = take_start(config.model, model, job.mesh, dtype=config.lora.base)
        params, base = divide(job, start)
        named = take_reference(config.reference, reference, start, config.lora, job.mesh, model=config.model)
        train, held_out = make_loaders(job, "pairs", start, dataset, eval_dataset)
        frozen = {**base, **named}
        policy = make_model(start.config, config.compute, config.lora)
        params = fit(
            job,
            loss_over(preference_loss(policy), "policy", bases_of(frozen, "policy", "reference")),
            dpo_totals,
            params,
            train,
            held_out,
            frozen=frozen,
            constants={"beta": config.beta},
        )
        return job.finish(start, params)
