"""The train step: what every method relies on, with each method's loss where it matters."""

import dataclasses
import functools
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrlhf.ops.stats import Max, Min, Sum, mean_of, values_of
from jaxrlhf.optim import adamw_direction
from jaxrlhf.steps.dpo import dpo_totals, preference_loss
from jaxrlhf.steps.kto import kto_totals, mismatched_kl, unpaired_loss
from jaxrlhf.steps.ppo import PolicyBatch, policy_loss, policy_totals, rollout_totals, value_loss
from jaxrlhf.steps.reward import kwise_loss, kwise_totals, pairwise_loss, pairwise_totals
from jaxrlhf.steps.sft import sft_loss, sft_totals
from jaxrlhf.steps.update import (
    CouplingFn,
    LossFn,
    StepFn,
    TotalsFn,
    init_state,
    join_rows,
    make_evaluate,
    make_update,
    split_rows,
    update_if,
)
from jaxrlhf.types import Rollout
from tests.fakes import bigram_model, hyper, pair_batch, ranked_batch, score_batch, token_batch, unpaired_batch

LENGTHS = [6, 2, 5, 3, 1, 4, 6, 6, 0, 0, 2, 6, 5, 5, 3, 2]  # of 16 rows; rows 8 and 9 are padding
ADAM = adamw_direction(b1=0.9, b2=0.99, eps=1e-8, weight_decay=0.1)


class Method(NamedTuple):
    loss_fn: LossFn
    totals_fn: TotalsFn
    params: Any
    frozen: Any
    batch: Any
    coupling: CouplingFn | None = None


def policy_method(scalar: bool) -> Method:
    model, params = bigram_model(scalar=scalar)
    batch = token_batch(LENGTHS, 6, prompt=2)
    rng = np.random.default_rng(0)
    logprobs, values, advantages, returns = rng.normal(size=(4, 16, 6)).astype(np.float32)
    mask = batch.mask & (np.arange(16) % 5 > 0)[:, None]  # some rows were not scored
    rollout = Rollout(
        batch=batch,
        mask=mask,
        logprobs=0.3 * logprobs - 3.0,
        ref_logprobs=logprobs,
        values=values,
        advantages=advantages,
        returns=returns,
    )
    if scalar:
        return Method(value_loss(model), rollout_totals, params, None, rollout)
    beside = PolicyBatch(rollout, token_batch(LENGTHS[:8], 5, seed=3))
    return Method(policy_loss(model), policy_totals, params, None, beside)


def method(name: str) -> Method:
    (policy, params), frozen = bigram_model(), {"reference": bigram_model(seed=1)[1]}
    scorer, score_params = bigram_model(scalar=True)
    rows, scored = token_batch(LENGTHS, 6, prompt=2), score_batch(LENGTHS, 6)
    unpaired = unpaired_batch(rows, token_batch(LENGTHS, 6, prompt=2, seed=2))
    ranks = [[1, 2, 3, 4], [2, 1, 2, 1], [1, 2, 1, 2], [1, 1, 1, 1]]  # the last prompt has nothing to compare
    return {
        "sft": lambda: Method(sft_loss(policy), sft_totals, params, None, rows),
        "pairwise": lambda: Method(pairwise_loss(scorer), pairwise_totals, score_params, None, pair_batch(scored, 0.3)),
        "kwise": lambda: Method(kwise_loss(scorer), kwise_totals, score_params, None, ranked_batch(scored, ranks)),
        "dpo": lambda: Method(preference_loss(policy), dpo_totals, params, frozen, pair_batch(rows)),
        "kto": lambda: Method(unpaired_loss(policy), kto_totals, params, frozen, unpaired, mismatched_kl(policy)),
        "policy": lambda: policy_method(scalar=False),
        "critic": lambda: policy_method(scalar=True),
    }[name]()


METHODS = ("sft", "pairwise", "kwise", "dpo", "kto", "policy", "critic")
HYPER = hyper(
    beta=0.3, desirable_weight=1.0, undesirable_weight=2.0, center_coef=0.01, temperature=0.7, clip_eps=0.2,
    value_clip_eps=0.5, entropy_coef=0.1, ptx_coef=2.0,
)  # fmt: skip


def slope() -> tuple[LossFn, TotalsFn]:
    """A loss whose gradient is the mean row of the batch, whatever the parameters are."""

    def loss_fn(params, frozen, batch, totals, hyper, key):
        loss = jnp.sum(batch @ params["kernel"]) / totals
        return loss, {"loss": mean_of(batch @ params["kernel"])}

    return loss_fn, lambda batch: jnp.float32(batch.shape[0])


@functools.cache
def compiled(name: str, micro_batches: int) -> tuple[StepFn, list[int]]:
    """The step of a method, which follows the plain gradient, and a list that grows with every trace of it."""
    loss_fn, totals_fn, *_, coupling = method(name)
    step = make_update(loss_fn, totals_fn, optax.identity(), coupling=coupling, micro_batches=micro_batches)
    traces = []

    def traced(*arguments):
        traces.append(1)
        return step(*arguments)

    return jax.jit(traced), traces


@pytest.mark.parametrize("name", METHODS)
def test_micro_batches_equal_one_batch_in_loss_gradient_and_metrics(name: str):
    _, _, params, frozen, batch, _ = method(name)

    def run(micro_batches: int):
        step, _ = compiled(name, micro_batches)
        state, metrics = step(init_state(params, optax.identity()), frozen, batch, HYPER)
        return jax.tree.map(jnp.subtract, params, state.params), values_of(metrics)

    (whole_gradient, whole), (gradient, metrics) = run(1), run(4)
    assert optax.tree.norm(whole_gradient) > 0.01
    chex.assert_trees_all_close(gradient, whole_gradient, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(metrics, whole, rtol=1e-5, atol=1e-6)


def test_totals_are_of_the_whole_batch():
    _, totals_fn, _, _, batch, _ = method("sft")
    assert totals_fn(batch) == sum(max(0, length - 1) for length in LENGTHS)
    assert method("pairwise").totals_fn(method("pairwise").batch) == 7  # of 8; one is padding
    assert method("kwise").totals_fn(method("kwise").batch) == 3
    mask = method("critic").batch.mask
    assert method("critic").totals_fn(method("critic").batch) == mask.sum() < method("sft").batch.mask.sum()
    policy = method("policy")
    assert policy.totals_fn(policy.batch) == (mask.sum(), policy.batch.pretraining.mask.sum())


@pytest.mark.parametrize("limit, factor", [(1e-4, 1e-4 / (5e-4 + 1e-6)), (5e-4, 5e-4 / (5e-4 + 1e-6)), (1.0, 1.0)])
def test_the_gradient_is_clipped_as_pytorch_does_it(limit: float, factor: float):
    loss_fn, totals_fn = slope()
    step = make_update(loss_fn, totals_fn, optax.identity())
    state = init_state({"kernel": jnp.zeros(2)}, optax.identity())
    batch = 1e-4 * jnp.asarray([[2.0, 4.0], [4.0, 4.0]])  # mean (3, 4) of 1e-4, norm 5e-4: the 1e-6 is seen
    state, metrics = step(state, None, batch, hyper(max_grad_norm=limit, learning_rate=0.5))
    np.testing.assert_allclose(state.params["kernel"], [-1.5e-4 * factor, -2e-4 * factor], rtol=1e-5)
    np.testing.assert_allclose(metrics["grad_norm"].value, 5e-4, rtol=1e-6)  # before clipping
    assert metrics["skipped"].value == 0.0


def bad_loss(params, frozen, batch, totals, hyper, key):
    """The loss is not finite, its gradient is."""
    return jnp.sum(params["kernel"]) + hyper["bad"], {"loss": Sum(hyper["bad"])}


def bad_gradient(params, frozen, batch, totals, hyper, key):
    """The loss is finite, its gradient is not: the root of 0."""
    kernel = params["kernel"]
    return jnp.sum(kernel) + jnp.sqrt(jnp.where(jnp.isfinite(hyper["bad"]), 1.0, 0.0) + 0.0 * kernel[0]), {}


@pytest.mark.parametrize("micro_batches", [1, 2])
@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
@pytest.mark.parametrize("loss_fn", [bad_loss, bad_gradient])
def test_a_step_that_is_not_finite_changes_nothing_but_the_step(loss_fn: LossFn, bad: float, micro_batches: int):
    step = jax.jit(make_update(loss_fn, lambda batch: 1.0, ADAM, micro_batches=micro_batches))
    start = init_state({"kernel": jnp.asarray([0.3, -0.7])}, ADAM)
    batch = jnp.zeros((4, 1))
    before, _ = step(start, None, batch, hyper(bad=0.0))
    skipped, metrics = step(before, None, batch, hyper(bad=bad))
    chex.assert_trees_all_equal((skipped.params, skipped.opt_state), (before.params, before.opt_state))
    assert metrics["skipped"].value == 1.0
    assert skipped.step == before.step + 1 == 2
    after, metrics = step(skipped, None, batch, hyper(bad=0.0))
    assert metrics["skipped"].value == 0.0
    assert jnp.isfinite(after.params["kernel"]).all() and jnp.all(after.params["kernel"] != before.params["kernel"])


def test_a_bad_micro_batch_skips_the_whole_step():
    loss_fn, totals_fn = slope()
    step = make_update(loss_fn, totals_fn, ADAM, micro_batches=2)
    start = init_state({"kernel": jnp.ones(2)}, ADAM)
    state, metrics = step(start, None, jnp.ones((4, 2)).at[1, 0].set(jnp.nan), hyper())
    chex.assert_trees_all_equal((state.params, state.opt_state), (start.params, start.opt_state))
    assert metrics["skipped"].value == 1.0


@pytest.mark.parametrize("name, key", [
    ("sft", "learning_rate"), ("sft", "max_grad_norm"), ("dpo", "beta"), ("kto", "undesirable_weight"),
    ("policy", "clip_eps"),
    ("policy", "temperature"), ("critic", "value_clip_eps"),
])  # fmt: skip
def test_another_hyper_parameter_changes_the_update_and_recompiles_nothing(name: str, key: str):
    _, _, params, frozen, batch, _ = method(name)
    step, traces = compiled(name, 1)
    state = init_state(params, optax.identity())
    before, _ = step(state, frozen, batch, HYPER)
    after, _ = step(state, frozen, batch, {**HYPER, key: jnp.float32(0.4)})
    assert optax.tree.norm(jax.tree.map(jnp.subtract, before.params, after.params)) > 1e-3
    assert len(traces) == 1


@pytest.mark.parametrize("goes", [True, False])
def test_an_update_may_be_left_out(goes: bool):
    loss_fn, totals_fn, params, frozen, batch, _ = method("sft")
    step, state = make_update(loss_fn, totals_fn, ADAM), init_state(params, ADAM)
    values = {**HYPER, **hyper(learning_rate=0.1, max_grad_norm=1.0)}
    arguments = (state, frozen, batch, values)
    found, metrics = jax.jit(lambda go: update_if(go, step, *arguments))(jnp.asarray(goes))
    expected = jax.jit(step)(*arguments)[0] if goes else dataclasses.replace(state, step=jnp.int32(1))
    chex.assert_trees_all_close(found, expected, rtol=1e-5 if goes else 0.0, atol=0.0)
    assert found.step == 1
    assert np.isnan(metrics["loss"].value) == (not goes) and metrics["skipped"].value == 0.0


def test_the_state_can_be_donated_and_what_is_frozen_stays():
    def loss_fn(params, frozen, batch, totals, hyper, key):
        return jnp.sum((batch @ (params["kernel"] - frozen["kernel"])) ** 2), {}

    step = jax.jit(make_update(loss_fn, lambda batch: 1.0, ADAM), donate_argnums=0)
    state, frozen = init_state({"kernel": jnp.ones(2)}, ADAM), {"kernel": jnp.zeros(2)}
    after, _ = step(state, frozen, jnp.ones((4, 2)), hyper())
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((after, frozen)))


def test_keys_are_a_function_of_seed_step_and_micro_batch():
    def loss_fn(params, frozen, batch, totals, hyper, key):
        draw = jax.random.uniform(key)
        return jnp.sum(params["kernel"]), {"low": Min(draw), "high": Max(draw)}

    def draws(seed: int, steps: int) -> list[float]:
        step = jax.jit(make_update(loss_fn, lambda batch: 1.0, optax.identity(), micro_batches=2, seed=seed))
        state, seen = init_state({"kernel": jnp.ones(2)}, optax.identity()), []
        for _ in range(steps):
            state, metrics = step(state, None, jnp.zeros((2, 1)), hyper())
            seen += [float(metrics["low"].value), float(metrics["high"].value)]
        return seen

    assert draws(0, 2) == draws(0, 2)
    assert len(set(draws(0, 2) + draws(1, 2))) == 8


@pytest.mark.parametrize("name", ["critic", "kto"])
def test_evaluation_gives_the_metrics_of_the_step(name: str):
    loss_fn, totals_fn, params, frozen, batch, coupling = method(name)
    metrics = jax.jit(make_evaluate(loss_fn, totals_fn, coupling))(params, frozen, batch, HYPER)
    _, of_step = compiled(name, 1)[0](init_state(params, optax.identity()), frozen, batch, HYPER)
    assert set(of_step) - set(metrics) == {"grad_norm", "skipped"}
    chex.assert_trees_all_close(metrics, {name: of_step[name] for name in metrics}, rtol=1e-6)


def test_what_couples_rows_is_told_to_every_micro_batch_and_has_no_gradient():
    def loss_fn(params, frozen, batch, totals, hyper, key):
        count, largest = totals
        return jnp.sum(batch @ params["kernel"]) * largest / count, {"largest": Max(largest)}

    def largest(params, frozen, parts, hyper):
        return jnp.max(jax.lax.map(lambda rows: jnp.max(rows @ params["kernel"]), parts))

    batch = jnp.asarray([[1.0], [2.0], [3.0], [10.0]])
    step = make_update(loss_fn, len, optax.identity(), coupling=largest, micro_batches=2)
    state, metrics = step(init_state({"kernel": jnp.ones(1)}, optax.identity()), None, batch, hyper())
    assert metrics["largest"].value == 10.0
    np.testing.assert_allclose(state.params["kernel"], [1.0 - 10.0 * 16 / 4])


def test_parts_take_every_so_manieth_row_and_join_to_the_batch():
    batch = {"tokens": jnp.arange(12).reshape(6, 2), "length": jnp.arange(6)}
    parts = split_rows(batch, 3)
    np.testing.assert_array_equal(parts["length"], [[0, 3], [1, 4], [2, 5]])
    assert parts["tokens"].shape == (3, 2, 2)
    chex.assert_trees_all_equal(join_rows(parts), batch)


def test_rows_that_do_not_divide_are_an_error():
    with pytest.raises(ValueError, match="a batch of 6 rows cannot be cut into 4 equal micro-batches"):
        split_rows({"length": jnp.arange(6)}, 4)
