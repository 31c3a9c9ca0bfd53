"""What of a model a run trains: all of it, or adapters, and the head of a reward model, over a base that stays."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from jaxrlhf.models.lora import check_targets, init_adapters, trained_share
from jaxrlhf.ops.trees import overlay
from jaxrlhf.sharding.rules import shardings_for
from jaxrlhf.steps.adapters import Bases
from jaxrlhf.trainers.run import Run
from jaxrlhf.trainers.start import Start
from jaxrlhf.types import Params

log = logging.getLogger(__name__)

_FRESH = 2**31 - 3
"""Folded into the key of fresh adapters, so that it is none of sampling, losses and evaluation."""

_HEAD = "score"
"""The part of a reward or value model that is trained as it is, since it may be new."""


def divide(run: Run, start: Start, *, what: str = "policy", salt: int = 0) -> tuple[Params, dict[str, Params]]:
    """Divides a model into what the run trains and what it does not.

    Args:
        run: the open run, whose config says whether there are adapters.
        start: the model.
        what: it is, for the log.
        salt: tells the adapters of several models apart.

    Returns:
        What is trained, to be donated; and the rest, under "base", or nothing if the whole model is trained.

    Raises:
        ValueError: if a target of the adapters matches none of the model's matrices.
    """
    lora = run.config.lora
    if lora.rank is None:
        return start.params, {}
    check_targets(start.config, lora)  # before the trace below, whose errors are not the user's

    def fresh(key: jax.Array, heads: Params) -> Params:
        return {**init_adapters(start.config, lora, key), **jax.tree.map(lambda x: jnp.array(x, jnp.float32), heads)}

    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(run.config.seed), _FRESH), salt)
    heads = {name: part for name, part in start.params.items() if name == _HEAD}
    shardings, _ = shardings_for(jax.eval_shape(fresh, key, heads), run.mesh)
    trained = jax.jit(fresh, out_shardings=shardings)(key, heads)
    base = {name: part for name, part in start.params.items() if name != _HEAD}
    log.info("%s: %s", what, trained_share(trained, overlay(base, trained)))
    return trained, {"base": base}


def bases_of(frozen: Mapping[str, Params], *names: str) -> Bases:
    """Which of some models stand over the base, if there is one: those without a whole model of their own.

    Args:
        frozen: parameters that nobody trains, by name.
        names: of the models, such as "policy" and "reference".
    """
    return {name: "base" for name in names if "base" in frozen and name not in frozen}
