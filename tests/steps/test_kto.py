import dataclasses
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxrlhf.ops.stats import values_of
from jaxrlhf.steps.kto import kto_totals, mismatched_kl, unpaired_loss
from jaxrlhf.steps.update import make_evaluate, split_rows
from jaxrlhf.types import TokenBatch
from tests.fakes import bigram_model, hyper, token_batch, unpaired_batch
from tests.players import CONFIG, POLICY, player_params

MODEL, PARAMS = bigram_model()
_, REFERENCE = bigram_model(seed=1)
LENGTHS = [3, 5, 4, 4, 2, 5]
BATCH = unpaired_batch(token_batch(LENGTHS, 5, prompt=2), token_batch(LENGTHS[::-1], 5, prompt=2, seed=2))
HYPER = hyper(beta=0.3, desirable_weight=1.0, undesirable_weight=2.0)


@jax.jit
def kl_of(params: Any, reference: Any, batch: Any) -> jax.Array:
    return mismatched_kl(MODEL)(params, {"reference": reference}, split_rows(batch, 1), HYPER)


@jax.jit
def run(batch: Any, reference: Any, params: Any = PARAMS):
    loss_fn = jax.value_and_grad(unpaired_loss(MODEL), has_aux=True)
    totals = kto_totals(batch), kl_of(params, reference, batch)
    (loss, metrics), gradient = loss_fn(params, {"reference": reference}, batch, totals, HYPER, jax.random.key(0))
    return loss, gradient, values_of(metrics)


def sums(params: Any, rows: TokenBatch) -> np.ndarray:
    logits = params["embed_tokens"]["embedding"][rows.tokens] @ params["lm_head"]["kernel"].T
    logprobs = np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), rows.targets[..., None], axis=-1)[..., 0]
    return np.where(rows.mask, logprobs, 0.0).sum(axis=-1)


def test_loss_and_metrics_by_hand():
    loss, _, metrics = run(BATCH, REFERENCE)
    kl = (sums(PARAMS, BATCH.mismatched) - sums(REFERENCE, BATCH.mismatched)).mean()
    assert kl > 0.1
    ratio, good = sums(PARAMS, BATCH.answers) - sums(REFERENCE, BATCH.answers), BATCH.desirable
    per_row = np.where(good, 1.0, 2.0) / (1 + np.exp(0.3 * np.where(good, ratio - kl, kl - ratio)))
    np.testing.assert_allclose(loss, per_row.mean(), rtol=1e-5)
    expected = {
        "loss": per_row.mean(),
        "kl": kl,
        "rewards/chosen": 0.3 * ratio[good].mean(),
        "rewards/rejected": 0.3 * ratio[~good].mean(),
        "rewards/margins": 0.3 * (ratio[good].mean() - ratio[~good].mean()),
        "logps/chosen": sums(PARAMS, BATCH.answers)[good].mean(),
        "logps/rejected": sums(PARAMS, BATCH.answers)[~good].mean(),
        "num_tokens": 23.0,
    }
    chex.assert_trees_all_close({name: metrics[name] for name in expected}, expected, rtol=1e-4)
    assert set(metrics) == {*expected, "entropy"}


def test_at_the_reference_the_kl_is_zero_and_a_row_costs_half_its_weight():
    params = player_params()
    rows = token_batch([3, 5, 4, 4], 5, prompt=2, vocab=CONFIG.vocab_size)
    evaluate = jax.jit(make_evaluate(unpaired_loss(POLICY), kto_totals, mismatched_kl(POLICY)))
    metrics = values_of(evaluate(params, {"reference": params}, unpaired_batch(rows, rows), HYPER))
    assert metrics["kl"] == metrics["rewards/margins"] == 0.0
    np.testing.assert_allclose(metrics["loss"], (3 * 0.5 + 1.0) / 4, rtol=1e-7)


def test_rows_of_padding_change_nothing():
    wide = jax.tree.map(lambda leaf: np.pad(leaf, ((0, 2),) + ((0, 0),) * (leaf.ndim - 1)), BATCH)
    assert kto_totals(wide) == kto_totals(BATCH) == 6
    chex.assert_trees_all_close(run(wide, REFERENCE), run(BATCH, REFERENCE), rtol=1e-5, atol=1e-6)


def test_a_row_without_a_neighbour_has_no_say_in_the_kl():
    there = np.asarray([True, True, False, True, False, True])
    ratio = (sums(PARAMS, BATCH.mismatched) - sums(REFERENCE, BATCH.mismatched))[there]
    mismatched = jax.tree.map(lambda leaf: leaf * there[:, None], BATCH.mismatched)
    assert ratio.mean() > 0.1
    kl = kl_of(PARAMS, REFERENCE, dataclasses.replace(BATCH, mismatched=mismatched))
    np.testing.assert_allclose(kl, ratio.mean(), rtol=1e-5)


def test_the_kl_is_that_of_the_whole_batch_however_it_is_cut():
    frozen = {"reference": REFERENCE}
    parts = jax.jit(lambda batch: mismatched_kl(MODEL)(PARAMS, frozen, split_rows(batch, 3), HYPER))(BATCH)
    np.testing.assert_allclose(parts, kl_of(PARAMS, REFERENCE, BATCH), rtol=1e-6)


def test_no_gradient_flows_to_the_reference_or_through_the_kl():
    def loss(params, reference, kl_params):
        frozen = {"reference": reference}
        totals = jnp.float32(6.0), mismatched_kl(MODEL)(kl_params, frozen, split_rows(BATCH, 1), HYPER)
        return unpaired_loss(MODEL)(params, frozen, BATCH, totals, HYPER, jax.random.key(0))[0]

    of_params, *others = jax.jit(jax.grad(loss, (0, 1, 2)))(PARAMS, REFERENCE, PARAMS)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(of_params))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(others))
