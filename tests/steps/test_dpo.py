import dataclasses
import math
from typing import Any

import chex
import jax
import numpy as np

from jaxrlhf.ops.stats import values_of
from jaxrlhf.steps.dpo import dpo_totals, preference_loss
from tests.fakes import VOCAB, bigram_model, hyper, pair_batch, token_batch
from tests.players import CONFIG, POLICY, player_params

MODEL, PARAMS = bigram_model()
_, REFERENCE = bigram_model(seed=1)
BATCH = pair_batch(token_batch([3, 5, 4, 4, 2, 5], 5, prompt=2))


@jax.jit
def run(batch: Any, reference: Any, params: Any = PARAMS):
    loss_fn = jax.value_and_grad(preference_loss(MODEL), has_aux=True)
    totals = dpo_totals(batch)
    (loss, metrics), gradient = loss_fn(
        params, {"reference": reference}, batch, totals, hyper(beta=0.3), jax.random.key(0)
    )
    return loss, gradient, values_of(metrics)


def sums(params: Any) -> np.ndarray:
    rows = BATCH.answers
    logits = params["embed_tokens"]["embedding"][rows.tokens] @ params["lm_head"]["kernel"].T
    logprobs = np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), rows.targets[..., None], axis=-1)[..., 0]
    return np.where(rows.mask, logprobs, 0.0).sum(axis=-1)


def test_loss_and_metrics_by_hand():
    loss, gradient, metrics = run(BATCH, REFERENCE)
    rewards = 0.3 * (sums(PARAMS) - sums(REFERENCE))
    gap = rewards[:, 0] - rewards[:, 1]
    np.testing.assert_allclose(loss, np.log1p(np.exp(-gap)).mean(), rtol=1e-5)
    expected = {
        "loss": np.log1p(np.exp(-gap)).mean(),
        "rewards/chosen": rewards[:, 0].mean(),
        "rewards/rejected": rewards[:, 1].mean(),
        "rewards/margins": gap.mean(),
        "rewards/accuracies": (gap > 0).mean(),
        "logps/chosen": sums(PARAMS)[:, 0].mean(),
        "num_tokens": 23.0,
    }
    chex.assert_trees_all_close({name: metrics[name] for name in expected}, expected, rtol=1e-4)


def test_at_the_reference_the_loss_is_ln_2_and_nothing_is_preferred():
    params = player_params()
    rows = token_batch([3, 5, 4, 4], 5, prompt=2, vocab=CONFIG.vocab_size)
    loss_fn = jax.jit(preference_loss(POLICY))
    loss, metrics = loss_fn(params, {"reference": params}, pair_batch(rows), 2.0, hyper(beta=0.3), jax.random.key(0))
    np.testing.assert_allclose(loss, math.log(2), rtol=1e-7)
    assert metrics["rewards/accuracies"].value == metrics["rewards/margins"].value == 0.0


def test_rows_of_padding_change_nothing():
    wide = jax.tree.map(lambda leaf: np.pad(leaf, ((0, 2),) + ((0, 0),) * (leaf.ndim - 1)), BATCH)
    assert dpo_totals(wide) == dpo_totals(BATCH) == 3
    chex.assert_trees_all_close(run(wide, REFERENCE), run(BATCH, REFERENCE), rtol=1e-5, atol=1e-6)


def test_no_gradient_flows_to_the_reference():
    def loss(reference):
        frozen = {"reference": reference}
        return preference_loss(MODEL)(PARAMS, frozen, BATCH, 3.0, hyper(beta=0.3), jax.random.key(0))[0]

    gradient = jax.jit(jax.grad(loss))(REFERENCE)
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(gradient))


def test_token_accuracy_counts_every_target_that_is_the_most_likely_token():
    flat = {**PARAMS, "lm_head": {"kernel": 0.1 * PARAMS["lm_head"]["kernel"]}}  # logits near 0, sums near log V
    rows = token_batch([64] * 8, 64)
    best = np.argmax(flat["embed_tokens"]["embedding"][rows.tokens] @ flat["lm_head"]["kernel"].T, axis=-1)
    for shift, share in [(0, 1.0), (1, 0.0)]:
        targets = ((best + shift) % VOCAB).astype(np.int32)
        _, _, metrics = run(pair_batch(dataclasses.replace(rows, targets=targets)), flat, flat)
        assert metrics["mean_token_accuracy"] == share
