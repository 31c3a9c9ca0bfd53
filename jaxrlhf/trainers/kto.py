"""Kahneman-Tversky optimisation: `run(config)`."""

from __future__ import annotations

import logging

from jaxrlhf.data.index import Index
from jaxrlhf.models.decoder import make_model
from jaxrlhf.steps.adapters import loss_over
from jaxrlhf.steps.kto import kto_totals, mismatched_kl, unpaired_loss
from jaxrlhf.trainers.adapters import bases_of, divide
from jaxrlhf.trainers.config import KTOConfig
from jaxrlhf.trainers.fit import fit
from jaxrlhf.trainers.rows import Rows, make_loaders
from jaxrlhf.trainers.run import Trained, open_run
from jaxrlhf.trainers.start import Start, take_reference, take_start

log = logging.getLogger(__name__)

BALANCE = 1.33
"""How many times the bad answers' weight the good ones' may be; Ethayarajh et al. 2024 advise 1 to this."""


def run(
    config: KTOConfig,
    *,
    model: Start | None = None,
    reference: Start | None = None,
    dataset: Rows | None = None,
    eval_dataset: Rows | None = None,
) -> Trained:
    """Trains a policy on single answers that are labelled good or bad; the reference stays as it is.

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
        train, held_out = make_loaders(job, "unpaired", start, dataset, eval_dataset)
        warn_of_imbalance(config, train.index)
        frozen = {**base, **named}
        bases = bases_of(frozen, "policy", "reference")
        policy = make_model(start.config, config.compute, config.lora)
        params = fit(
            job,
            loss_over(unpaired_loss(policy), "policy", bases),
            kto_totals,
            params,
            train,
            held_out,
            coupling=loss_over(mismatched_kl(policy), "policy", bases),
            frozen=frozen,
            constants={
                "beta": config.beta,
                "desirable_weight": config.desirable_weight,
                "undesirable_weight": config.undesirable_weight,
            },
        )
        return job.finish(start, params)


def warn_of_imbalance(config: KTOConfig, index: Index) -> None:
    """Warns unless good answers weigh 1 to 1.33 times what bad ones do, counted as often as the run sees them."""
    seen = index.weights[index.source]
    good, bad = float(seen[index.desirable].sum()), float(seen[~index.desirable].sum())
    good_weight, bad_weight = config.desirable_weight, config.undesirable_weight
    ratio = good_weight * good / (bad_weight * bad)
    if 1 <= round(ratio, 2) <= BALANCE:
        return
    log.warning(
        "training data: desirable_weight=%g x %g good answers over undesirable_weight=%g x %g bad ones is %.2f, and "
        "1 to %g is advised; set desirable_weight from %.4g to %.4g, or undesirable_weight from %.4g to %.4g",
        good_weight, good, bad_weight, bad, ratio, BALANCE,
        good_weight / ratio, good_weight * BALANCE / ratio, bad_weight * ratio / BALANCE, bad_weight * ratio,
    )  # fmt: skip
