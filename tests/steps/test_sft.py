import dataclasses
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxrlhf.ops.stats import values_of
from jaxrlhf.steps.sft import sft_loss, sft_totals
from tests.fakes import VOCAB, bigram_model, token_batch

MODEL, PARAMS = bigram_model()


@jax.jit
def run(batch: Any, params: Any = PARAMS):
    loss = jax.value_and_grad(sft_loss(MODEL), has_aux=True)
    (value, metrics), gradient = loss(params, None, batch, sft_totals(batch), {}, jax.random.key(0))
    return value, gradient, values_of(metrics)


def test_loss_and_metrics_by_hand():
    batch = token_batch([5, 2, 4, 1], 5, prompt=2)
    loss, _, metrics = run(batch)
    logits = PARAMS["embed_tokens"]["embedding"][batch.tokens] @ PARAMS["lm_head"]["kernel"].T
    logprobs = np.asarray(jax.nn.log_softmax(logits))[batch.mask]
    targets = batch.targets[batch.mask]
    assert len(targets) == 4 + 1 + 3
    expected = {
        "loss": -logprobs[np.arange(8), targets].mean(),
        "entropy": -(np.exp(logprobs) * logprobs).sum(axis=1).mean(),
        "mean_token_accuracy": (logprobs.argmax(axis=1) == targets).mean(),
        "num_tokens": 12.0,
    }
    chex.assert_trees_all_close(metrics, expected, rtol=1e-5)
    np.testing.assert_allclose(loss, expected["loss"], rtol=1e-5)


def test_every_target_that_is_the_most_likely_token_is_counted_as_hit():
    flat = {**PARAMS, "lm_head": {"kernel": 0.1 * PARAMS["lm_head"]["kernel"]}}  # logits near 0, sums near log V
    batch = token_batch([64] * 8, 64, prompt=1)
    best = jnp.argmax(flat["embed_tokens"]["embedding"][batch.tokens] @ flat["lm_head"]["kernel"].T, axis=-1)
    for shift, share in [(0, 1.0), (1, 0.0)]:
        targets = ((best + shift) % VOCAB).astype(jnp.int32)
        _, _, metrics = run(dataclasses.replace(batch, targets=targets), flat)
        assert metrics["mean_token_accuracy"] == share


def test_rows_and_columns_of_padding_change_nothing():
    batch = token_batch([5, 2, 4], 5)
    wide = jax.tree.map(lambda leaf: np.pad(leaf, ((0, 2), (0, 3))), batch)
    (loss, gradient, metrics), (other, other_gradient, other_metrics) = run(batch), run(wide)
    np.testing.assert_allclose(other, loss, rtol=1e-6)
    chex.assert_trees_all_close(other_gradient, gradient, rtol=1e-5, atol=1e-7)
    chex.assert_trees_all_close(other_metrics, metrics, rtol=1e-6)


def test_a_batch_without_trained_tokens_has_no_loss_and_no_gradient():
    loss, gradient, _ = run(token_batch([0, 0, 0], 5))
    assert loss == 0.0 and not any(jnp.any(leaf) for leaf in jax.tree.leaves(gradient))
