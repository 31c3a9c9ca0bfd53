"""Kahneman-Tversky optimisation: the loss of an `UnpairedBatch` under a policy and a frozen reference."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from jaxrlhf.losses import kto_kl, kto_loss
from jaxrlhf.ops.stats import mean_of
from jaxrlhf.steps.scoring import num_tokens, present, sequence_logprobs, token_logprobs
from jaxrlhf.steps.update import CouplingFn, LossFn, join_rows
from jaxrlhf.types import Hyper, Metrics, Model, Params, TokenBatch, UnpairedBatch


def unpaired_loss(model: Model) -> LossFn:
    """The `loss_fn` of KTO, whose `coupling` is `mismatched_kl`.

    The reference's parameters are `frozen["reference"]`; it reads `beta`, `desirable_weight` and `undesirable_weight`
    of `hyper`.
    """

    def loss_fn(
        params: Params,
        frozen: Mapping[str, Params],
        batch: UnpairedBatch,
        totals: tuple[jax.Array, jax.Array],
        hyper: Hyper,
        key: jax.Array | None,
    ) -> tuple[jax.Array, Metrics]:
        rows, kl = totals
        out, mask = token_logprobs(model, params, batch.answers, want=("logp", "entropy"), key=key)
        ref, _ = token_logprobs(model, frozen["reference"], batch.answers)
        assert out.logp is not None and out.entropy is not None and ref.logp is not None
        loss, metrics = kto_loss(
            sequence_logprobs(out.logp, mask),
            sequence_logprobs(ref.logp, mask),
            batch.desirable,
            kl,
            beta=hyper["beta"],
            desirable_weight=hyper["desirable_weight"],
            undesirable_weight=hyper["undesirable_weight"],
            valid=present(batch.answers),
            denom=rows,
        )
        return loss, {**metrics, "entropy": mean_of(out.entropy, mask), "num_tokens": num_tokens(batch.answers)}

    return loss_fn


def kto_totals(batch: UnpairedBatch) -> jax.Array:
    """The number of answers."""
    return jnp.sum(present(batch.answers), dtype=jnp.float32)


def mismatched_kl(model: Model) -> CouplingFn:
    """The `coupling` of KTO: `kto_kl` of the mismatched rows of the whole batch. `frozen` as for `unpaired_loss`."""

    def coupling(params: Params, frozen: Mapping[str, Params], parts: UnpairedBatch, hyper: Hyper) -> jax.Array:
        del hyper

        def sums(rows: TokenBatch) -> tuple[jax.Array, jax.Array, jax.Array]:
            out, mask = token_logprobs(model, params, rows)
            ref, _ = token_logprobs(model, frozen["reference"], rows)
            assert out.logp is not None and ref.logp is not None
            return sequence_logprobs(out.logp, mask), sequence_logprobs(ref.logp, mask), present(rows)

        logps, ref_logps, there = join_rows(jax.lax.map(sums, parts.mismatched))
        return kto_kl(logps, ref_logps, valid=there)

    return coupling
