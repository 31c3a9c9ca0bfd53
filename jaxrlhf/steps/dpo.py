"""Direct preference optimisation: the loss of a `PairBatch` under a policy and a frozen reference."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from jaxrlhf.losses import dpo_loss
from jaxrlhf.ops.stats import mean_of
from jaxrlhf.steps.reward import pairwise_totals
from jaxrlhf.steps.scoring import answer_sums, flat_answers, num_tokens, present, token_logprobs
from jaxrlhf.steps.update import LossFn
from jaxrlhf.types import Hyper, Metrics, Model, PairBatch, Params

dpo_totals = pairwise_totals


def preference_loss(model: Model) -> LossFn:
    """The `loss_fn` of DPO. The reference's parameters are `frozen["reference"]`; reads `hyper["beta"]`."""

    def loss_fn(
        params: Params,
        frozen: Mapping[str, Params],
        batch: PairBatch,
        totals: jax.Array,
        hyper: Hyper,
        key: jax.Array | None,
    ) -> tuple[jax.Array, Metrics]:
        rows = flat_answers(batch.answers)
        out, mask = token_logprobs(model, params, rows, want=("logp", "lse", "entropy", "max_logit"), key=key)
        ref, _ = token_logprobs(model, frozen["reference"], rows)
        assert out.logp is not None and out.lse is not None and ref.logp is not None
        assert out.entropy is not None and out.max_logit is not None
        sums = answer_sums(batch.answers, out.logp)
        ref_sums = answer_sums(batch.answers, ref.logp)
        loss, metrics = dpo_loss(
            sums[:, 0],
            sums[:, 1],
            ref_sums[:, 0],
            ref_sums[:, 1],
            beta=hyper["beta"],
            valid=jnp.all(present(batch.answers), axis=1),
            denom=totals,
        )
        return loss, {
            **metrics,
            "entropy": mean_of(out.entropy, mask),
            "mean_token_accuracy": mean_of(out.logp >= out.max_logit - out.lse, mask),
            "num_tokens": num_tokens(batch.answers),
        }

    return loss_fn
