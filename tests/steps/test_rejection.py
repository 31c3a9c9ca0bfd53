"""Rejection sampling's updates: which rows they see, and that they are fine-tuning's."""

import dataclasses
import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrlhf.ops.stats import values_of
from jaxrlhf.optim import adamw_direction
from jaxrlhf.steps.experience import Experience, States
from jaxrlhf.steps.rejection import choose, make_learn
from jaxrlhf.steps.sft import sft_loss, sft_totals
from jaxrlhf.steps.update import init_state
from tests.fakes import hyper
from tests.steps.experiences import MASK, experience
from tests.steps.test_grpo import FAKE, LENGTHS, PARAMS, fake_experience

HYPER = hyper(learning_rate=1.0)
SCORES = [0.0, 2.0, 3.0, 1.0, 5.0, 5.0, -1.0, -2.0]
BEST = [1, 2, 4, 6]  # of each two; of equal ones the first
NAN = float("nan")


@functools.cache
def learner(answers: int = 2, keep: int = 1, **changes: Any):
    options = {"min_score": None, "epochs": 1, "mini_batches": 1, "micro_batches": 1, "seed": 0, **changes}
    return jax.jit(make_learn(FAKE, optax.identity(), answers=answers, keep=keep, **options))


def gradient_of(found: Experience, **options: Any) -> tuple[Any, Any]:
    """By identity optimizer at rate 1."""
    states, metrics = learner(**options)(States({"policy": init_state(PARAMS, optax.identity())}), {}, found, HYPER)
    return jax.tree.map(jnp.subtract, PARAMS, states.models["policy"].params), values_of(metrics)


@jax.jit
def fine_tuned(batch: Any) -> tuple[Any, Any]:
    """The gradient and the metrics of fine-tuning on a batch."""
    differentiate = jax.grad(sft_loss(FAKE), has_aux=True)
    gradient, metrics = differentiate(PARAMS, None, batch, sft_totals(batch), {}, jax.random.key(0))
    return gradient, values_of(metrics)


def test_the_best_answers_are_taken_and_counted():
    # The third answer has no score and the fourth no prompt: their group has nothing to take.
    batch, metrics = choose(experience(gold=[1.0, 4.0, NAN, 9.0]), answers=2, keep=1)
    whole = experience(gold=[0.0] * 4).batch
    np.testing.assert_array_equal(batch.tokens[0], whole.tokens[1])
    assert batch.columns is not None and whole.columns is not None
    np.testing.assert_array_equal(batch.columns[0], whole.columns[1])
    np.testing.assert_array_equal(batch.mask.sum(axis=1), [MASK[1].sum(), 0])
    metrics = values_of(metrics)
    assert metrics["reward"] == 2.5 and metrics["reward/best"] == 4.0 and metrics["rejection/kept"] == 1.0
    assert metrics["objective/unscored"] == 1.0 and metrics["frac_reward_zero_std"] == 0.0


def test_a_score_below_the_least_is_not_taken_and_one_that_equals_it_is():
    _, metrics = choose(fake_experience(SCORES), answers=4, keep=2, min_score=3.0)
    metrics = values_of(metrics)
    assert metrics["rejection/kept"] == 0.75  # 3 of the first four, 5 and 5 of the others
    assert metrics["reward/best"] == pytest.approx(13 / 3)
    assert metrics["reward"] == np.mean(SCORES)


def test_weights_decide_what_is_best():
    found = fake_experience(SCORES)
    found = dataclasses.replace(found, scores={**found.scores, "other": -10 * found.scores["gold"]})
    _, metrics = choose(found, answers=2, keep=1, weights={"gold": 1.0, "other": 0.2})
    assert values_of(metrics)["reward/best"] == np.mean([0.0, -1.0, -5.0, 2.0])  # the total is minus gold


def test_an_update_is_fine_tuning_on_the_answers_that_were_taken():
    found = fake_experience(SCORES)
    expected, expected_metrics = fine_tuned(jax.tree.map(lambda leaf: leaf[np.asarray(BEST)], found.batch))
    gradient, metrics = gradient_of(found)
    chex.assert_trees_all_close(gradient, expected, rtol=1e-5, atol=1e-7)
    for name in ("loss", "entropy", "mean_token_accuracy"):
        assert metrics[name] == pytest.approx(float(expected_metrics[name]), rel=1e-6)
    assert metrics["num_tokens"] == np.sum(found.batch.segment_ids != 0)  # of all answers


def test_the_rows_that_were_not_taken_teach_nothing():
    found = fake_experience(SCORES)
    rest = np.isin(np.arange(8), BEST)[:, None]
    other = dataclasses.replace(
        found, batch=dataclasses.replace(found.batch, targets=jnp.where(rest, found.batch.targets, 7))
    )
    chex.assert_trees_all_equal(gradient_of(other)[0], gradient_of(found)[0])


@pytest.mark.parametrize("options", [{"micro_batches": 4}, {"micro_batches": 2, "answers": 4, "keep": 2}])
def test_micro_batches_equal_one_batch(options):
    found = fake_experience(SCORES)
    parts, whole = gradient_of(found, **options), gradient_of(found, **{**options, "micro_batches": 1})
    chex.assert_trees_all_close(parts, whole, rtol=1e-4, atol=1e-6)


def test_epochs_and_mini_batches_are_so_many_updates_of_so_many_rows():
    states = States({"policy": init_state(PARAMS, optax.identity())})
    after, metrics = learner(epochs=3, mini_batches=2)(states, {}, fake_experience(SCORES), HYPER)
    assert after.models["policy"].step == 6
    assert metrics["mean_token_accuracy"].weight == 3 * LENGTHS[BEST].sum()


def test_with_nothing_taken_there_is_no_update():
    """Adam's momentum and its decay would move the policy even where the gradient is 0."""
    adam = adamw_direction(b1=0.9, b2=0.99, eps=1e-8, weight_decay=0.1)
    options = {"epochs": 1, "mini_batches": 1, "micro_batches": 2, "seed": 0}
    learn = jax.jit(make_learn(FAKE, adam, answers=2, keep=1, min_score=1.0, **options))
    states, metrics = learn(States({"policy": init_state(PARAMS, adam)}), {}, fake_experience(SCORES), HYPER)
    assert values_of(metrics)["skipped"] == 0.0 and values_of(metrics)["rejection/kept"] == 0.75
    after, metrics = learn(states, {}, fake_experience([0.0] * 6 + [NAN] * 2), HYPER)
    before, after, metrics = states.models["policy"], after.models["policy"], values_of(metrics)
    chex.assert_trees_all_equal((after.params, after.opt_state), (before.params, before.opt_state))
    assert after.step == before.step + 1
    assert metrics["skipped"] == 0.0 and jnp.isnan(metrics["grad_norm"]) and metrics["rejection/kept"] == 0.0
    assert metrics["reward"] == 0.0 and jnp.isnan(metrics["loss"])
