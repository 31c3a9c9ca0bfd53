"""The loop of the methods that learn from a fixed set of rows: SFT, reward models, DPO, KTO."""

from __future__ import annotations

from collections.abc import Mapping

import jax

from jaxrlhf.data.loader import Loader
from jaxrlhf.evaluation.metrics import average
from jaxrlhf.sharding.place import place_batch, replicated, shardings_of
from jaxrlhf.steps.update import CouplingFn, LossFn, TotalsFn, make_evaluate, make_update
from jaxrlhf.trainers.run import Run
from jaxrlhf.trainers.state import first_state, make_hyper, make_optimizer, rate_at
from jaxrlhf.types import Params


def fit(
    run: Run,
    loss_fn: LossFn,
    totals_fn: TotalsFn,
    params: Params,
    train: Loader,
    held_out: Loader | None,
    *,
    coupling: CouplingFn | None = None,
    frozen: Params | None = None,
    constants: Mapping[str, float] | None = None,
) -> Params:
    """Trains, evaluates, saves and resumes; what is trained is decided by the loss.

    Args:
        run: the open run.
        loss_fn: the method's loss.
        totals_fn: the method's totals.
        params: to start from; donated.
        train: batches to train on.
        held_out: batches to evaluate on, or None.
        coupling: what couples the rows of a batch, if the method has such; see `make_update`.
        frozen: parameters that the loss reads and nobody trains, such as the reference's.
        constants: hyper-parameters of the loss.

    Returns:
        The parameters to export: the best ones if a metric chooses, else the last.
    """
    config, optim = run.config, run.config.optim
    optimizer = make_optimizer(optim)
    state = first_state(run, params, optimizer)
    update = make_update(
        loss_fn, totals_fn, optimizer, coupling=coupling, micro_batches=config.micro_batches, seed=config.seed
    )
    step = jax.jit(update, donate_argnums=0, out_shardings=(shardings_of(state), replicated(run.mesh)))
    evaluate = jax.jit(make_evaluate(loss_fn, totals_fn, coupling), out_shardings=replicated(run.mesh))
    fixed = make_hyper({"max_grad_norm": optim.max_grad_norm, **(constants or {})})

    def held_out_metrics(params: Params, steps: int) -> dict[str, float]:
        if held_out is None or not run.evaluates_at(steps):
            return {}
        run.journal.flush()
        batches = (place_batch(batch, run.mesh) for batch in held_out.eval_batches())
        return run.report_evaluation(steps, average(evaluate(params, frozen, batch, fixed) for batch in batches))

    state, first = run.resume(state, frozen)
    if first == 0:
        held_out_metrics(state.params, 0)
    for n, batch in enumerate(train.prefetched(first, run.total), start=first):
        rate = rate_at(optim, n, run.total)
        hyper = {**fixed, **make_hyper({"learning_rate": rate})}
        state, metrics = step(state, frozen, place_batch(batch, run.mesh), hyper)
        run.journal.add(n + 1, metrics, {"learning_rate": rate})
        found = held_out_metrics(state.params, n + 1)
        if run.saves_at(n + 1):
            run.save(n + 1, state, found)
    run.journal.flush()
    return run.best(state).params
