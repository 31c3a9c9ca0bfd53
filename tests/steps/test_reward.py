import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxrlhf.ops.stats import values_of
from jaxrlhf.steps.reward import answer_scores, kwise_loss, kwise_totals, pairwise_loss, pairwise_totals
from jaxrlhf.steps.update import LossFn, TotalsFn
from tests.fakes import bigram_model, hyper, pair_batch, ranked_batch, score_batch

MODEL, PARAMS = bigram_model(scalar=True)
ROWS = score_batch([3, 5, 4, 4, 2, 5], 5)
PAIRWISE = (pairwise_loss(MODEL), pairwise_totals)
KWISE = (kwise_loss(MODEL), kwise_totals)


@functools.partial(jax.jit, static_argnums=0)
def run(method: tuple[LossFn, TotalsFn], batch: Any, center_coef: float = 0.0):
    loss_fn, totals_fn = method
    values = hyper(center_coef=center_coef)
    differentiate = jax.value_and_grad(loss_fn, has_aux=True)
    (loss, metrics), gradient = differentiate(PARAMS, None, batch, totals_fn(batch), values, jax.random.key(0))
    return loss, gradient, values_of(metrics)


def test_an_answer_is_scored_at_its_last_token():
    scores = answer_scores(MODEL, PARAMS, pair_batch(ROWS).answers)
    last = ROWS.tokens[np.arange(6), np.asarray([3, 5, 4, 4, 2, 5]) - 1]
    expected = PARAMS["embed_tokens"]["embedding"][last] @ PARAMS["score"]["kernel"][0]
    np.testing.assert_allclose(scores, expected.reshape(3, 2), rtol=1e-5)


def test_pairs_by_hand():
    scores = np.asarray(answer_scores(MODEL, PARAMS, pair_batch(ROWS).answers), np.float64)
    gap = scores[:, 0] - scores[:, 1]
    loss, _, metrics = run(PAIRWISE, pair_batch(ROWS, margin=0.3), 0.1)
    expected = np.mean(np.log1p(np.exp(0.3 - gap)) + 0.1 * scores.sum(axis=1) ** 2)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)
    np.testing.assert_allclose(metrics["accuracy"], np.mean(gap > 0), rtol=1e-6)
    assert metrics["num_tokens"] == 23


def test_two_ranked_answers_are_a_pair():
    pairs, ranked = run(PAIRWISE, pair_batch(ROWS)), run(KWISE, ranked_batch(ROWS, [[1, 2]] * 3))
    chex.assert_trees_all_close(ranked, pairs, rtol=1e-5, atol=1e-7)
    swapped = jax.tree.map(lambda leaf: leaf[np.asarray([1, 0, 3, 2, 5, 4])], ROWS)
    chex.assert_trees_all_close(run(KWISE, ranked_batch(swapped, [[2, 1]] * 3)), pairs, rtol=1e-5, atol=1e-7)


def test_prompts_weigh_the_same_whatever_their_number_of_answers():
    whole = ranked_batch(score_batch([3, 5, 4, 2, 5, 0], 5), [[2, 1, 3], [1, 2, 1]])
    scores = np.asarray(answer_scores(MODEL, PARAMS, whole.answers), np.float64)
    first = np.mean([np.log1p(np.exp(scores[0, b] - scores[0, a])) for a, b in [(1, 0), (1, 2), (0, 2)]])
    second = np.log1p(np.exp(scores[1, 1] - scores[1, 0]))  # its third answer is absent
    np.testing.assert_allclose(run(KWISE, whole)[0], (first + second) / 2, rtol=1e-5)


def test_rows_of_padding_change_nothing():
    wide = jax.tree.map(lambda leaf: np.pad(leaf, ((0, 2),) + ((0, 0),) * (leaf.ndim - 1)), pair_batch(ROWS, 0.2))
    chex.assert_trees_all_close(run(PAIRWISE, wide), run(PAIRWISE, pair_batch(ROWS, 0.2)), rtol=1e-5, atol=1e-7)
    ranked = ranked_batch(ROWS, [[1, 3, 2], [2, 1, 1]])
    wide = jax.tree.map(lambda leaf: np.pad(leaf, ((0, 1), (0, 2)) + ((0, 0),) * (leaf.ndim - 2)), ranked)
    chex.assert_trees_all_close(run(KWISE, wide), run(KWISE, ranked), rtol=1e-5, atol=1e-7)


def test_a_pair_with_one_answer_missing_does_not_count():
    batch = pair_batch(score_batch([3, 5, 4, 0, 0, 5], 5))
    assert pairwise_totals(batch) == 1
    loss, gradient, _ = run(PAIRWISE, batch)
    only = run(PAIRWISE, jax.tree.map(lambda leaf: leaf[:1], batch))
    chex.assert_trees_all_close((loss, gradient), only[:2], rtol=1e-5, atol=1e-7)
    assert jnp.isfinite(loss)
