"""Answers that share the row of their prompt against answers with a row each."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrlhf.data.batches import LAYOUTS
from jaxrlhf.data.widths import plan_widths
from jaxrlhf.ops.stats import values_of
from jaxrlhf.sharding.mesh import make_mesh
from jaxrlhf.sharding.place import place_batch, to_host
from jaxrlhf.steps.dpo import dpo_totals, preference_loss
from jaxrlhf.steps.reward import answer_scores, kwise_loss, kwise_totals, pairwise_loss, pairwise_totals
from jaxrlhf.steps.scoring import flat_answers, num_tokens, present, token_logprobs
from tests.data.indices import make_index
from tests.fakes import bigram_model, hyper
from tests.players import CONFIG, POLICY, SCORER, player_params

POLICY_PARAMS, REFERENCE, SCORER_PARAMS = player_params(), player_params(seed=1), player_params(scalar=True)
METHODS = {
    "pairs": (preference_loss(POLICY), dpo_totals, POLICY_PARAMS),
    "scored_pairs": (pairwise_loss(SCORER), pairwise_totals, SCORER_PARAMS),
    "scored_ranked": (kwise_loss(SCORER), kwise_totals, SCORER_PARAMS),
}


def draw(rng, prompt, answers):
    """A prompt with answers of the given lengths, as (ids, ids of the prompt)."""
    start = rng.integers(4, CONFIG.vocab_size, prompt)
    return [(np.concatenate([start, rng.integers(4, CONFIG.vocab_size, n)]), prompt) for n in answers]


def examples(kind):
    """Ragged examples: long and short prompts, and answers that do not begin alike."""
    rng = np.random.default_rng(0)
    sizes = [(9, (3, 5)), (1, (4, 2)), (6, (1, 7)), (12, (6, 6))]
    if kind == "scored_ranked":
        sizes = [(9, (3, 5, 1)), (2, (4, 2)), (6, (1, 7, 2, 5))]
    groups = [draw(rng, *size) for size in sizes]
    groups[0][1][0][4] = 4  # from here on the prompts of the first example differ
    return groups


def both(kind, units):
    """The same units in rows of one answer, and in rows of all."""
    groups = examples(kind)
    index = make_index(
        "ranked" if kind == "scored_ranked" else "preference",
        [sequence for group in groups for sequence in group],
        groups=np.cumsum([0, *map(len, groups)]),
        ranks=[rank for group in groups for rank in range(1, len(group) + 1)],
        margins=[0.5] * len(groups),
    )
    kinds = (kind, f"shared_{kind}")
    return [LAYOUTS[name].build(index, np.array(units), plan_widths(index, name)[-1]) for name in kinds]


def run(kind, batch):
    loss_fn, totals_fn, params = METHODS[kind]
    values = hyper(beta=0.3, center_coef=0.1)

    @jax.jit
    def differentiate(params, batch):
        differentiate = jax.value_and_grad(loss_fn, has_aux=True)
        return differentiate(params, {"reference": REFERENCE}, batch, totals_fn(batch), values, jax.random.key(0))

    (loss, metrics), gradient = differentiate(params, batch)
    return loss, gradient, values_of(metrics)


@pytest.mark.parametrize("kind", METHODS)
def test_loss_gradient_and_metrics_are_those_of_separate_rows(kind):
    apart, together = both(kind, [2, -1, 0, 1])
    assert together.answers.tokens.size < apart.answers.tokens.size
    # Gradients are of size 1; where their terms cancel, rounding is not relative to what is left.
    chex.assert_trees_all_close(run(kind, together), run(kind, apart), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("kind", ["scored_pairs", "scored_ranked"])
def test_scores_are_those_of_separate_rows(kind):
    apart, together = both(kind, [2, -1, 0])
    np.testing.assert_array_equal(present(together.answers), present(apart.answers))
    scores = jax.jit(lambda answers: answer_scores(SCORER, SCORER_PARAMS, answers))
    np.testing.assert_allclose(scores(together.answers), scores(apart.answers), rtol=1e-5, atol=1e-6)
    assert not np.any(scores(together.answers)[1])


@pytest.mark.parametrize("sizes", [(8, 1, 1), (2, 2, 2)])
def test_eight_devices_equal_one(sizes):
    batch = both("pairs", [2, -1, 0, 1, 3, 1, 0, 2])[1]
    expected = run("pairs", batch)
    mesh = make_mesh(*sizes)
    with jax.set_mesh(mesh):
        found = run("pairs", place_batch(batch, mesh))
    chex.assert_trees_all_close(to_host(found), to_host(expected), rtol=2e-5, atol=2e-5)


def test_an_answer_does_not_see_the_other():
    answers = both("pairs", [3])[1].answers
    changed = dataclasses.replace(answers, tokens=np.where(answers.segment_ids == 2, 7, answers.tokens))
    assert (changed.tokens != answers.tokens).sum() >= 5

    @jax.jit
    def logprobs(answers):
        out, _ = token_logprobs(POLICY, POLICY_PARAMS, flat_answers(answers))
        return out.logp.reshape(2, -1)

    before, after = logprobs(answers), logprobs(changed)
    np.testing.assert_array_equal(after[1], before[1])
    assert (jnp.abs(after - before)[0, :6] > 1e-4).all()


def test_a_shared_prompt_counts_once_for_each_answer():
    for kind in METHODS:
        apart, together = both(kind, [1, -1, 0])
        assert num_tokens(together.answers).value == num_tokens(apart.answers).value


def test_only_rows_that_are_shared_ask_a_model_for_prefixes():
    model, params = bigram_model(CONFIG.vocab_size)
    apart, together = both("pairs", [0])
    token_logprobs(model, params, flat_answers(apart.answers))
    with pytest.raises(TypeError, match="prefix_ids"):
        token_logprobs(model, params, flat_answers(together.answers))
