"""GRPO's updates: groups, exactness before the first one, the terms of the loss."""

import dataclasses
import functools
import math
from typing import Any, get_args

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrlhf.losses import grpo
from jaxrlhf.ops.stats import values_of
from jaxrlhf.steps import grpo as steps
from jaxrlhf.steps.experience import Experience, States, make_judge
from jaxrlhf.steps.grpo import REDUCTIONS, make_learn, make_rollout, policy_loss, rollout_totals
from jaxrlhf.steps.update import init_state, make_update
from jaxrlhf.trainers import grpo_config
from jaxrlhf.types import Rollout, Samples
from tests.fakes import VOCAB, bigram_model, hyper, prompt_batch
from tests.players import POLICY, SCORER, player_params, random_prompts
from tests.steps.experiences import MASK, experience
from tests.steps.test_ppo import ADAM, ENDING, SAMPLE

HYPER = hyper(learning_rate=0.1, max_grad_norm=1e9, temperature=1.0, kl_coef=0.1, clip_low=0.2, clip_high=0.3)
(FAKE, PARAMS), (_, REFERENCE) = bigram_model(), bigram_model(seed=1)
GROUPING = {"answers": 2, "baseline": "mean", "scale": "group"}
LENGTHS = np.asarray([3, 1, 2, 3, 3, 1, 2, 2])


def fake_experience(scores: list[float]) -> Experience:
    """Answers of 1 to 3 random tokens, two to each prompt; the reference is another model."""
    rows, rng = len(scores), np.random.default_rng(0)
    mask = np.arange(3)[None, :] < LENGTHS[:rows, None]
    samples = Samples(
        tokens=np.where(mask, rng.integers(3, VOCAB, (rows, 3)), 0).astype(np.int32),
        mask=mask,
        terminated=np.ones(rows, bool),
        logprobs=np.zeros((rows, 3), np.float32),
        sampling_logprobs=np.zeros((rows, 3), np.float32),
    )
    judge = jax.jit(make_judge(FAKE, None, None, rows_at_once=rows, answers=2))
    prompts = prompt_batch([[1, 2 + row] for row in range(rows // 2)], 2)
    found = judge({"policy": PARAMS}, {"reference": REFERENCE}, prompts, samples, HYPER)
    return dataclasses.replace(found, scores={"gold": jnp.asarray(scores)})


@functools.cache
def learner(kl: Any = None, reduction: Any = "dapo", epochs: int = 1, mini_batches: int = 1, micro_batches: int = 1):
    return jax.jit(make_learn(
        FAKE, optax.identity(), **GROUPING,
        reduction=reduction, kl=kl, epochs=epochs, mini_batches=mini_batches, micro_batches=micro_batches, seed=0,
    ))  # fmt: skip


def learned(scores: list[float], params: Any = PARAMS, values: Any = HYPER, **options: Any):
    states = States({"policy": init_state(params, optax.identity())})
    states, metrics = learner(**options)(states, {"reference": REFERENCE}, fake_experience(scores), values)
    return states.models["policy"].params, values_of(metrics)


def distance(left: Any, right: Any) -> float:
    return float(optax.tree.norm(jax.tree.map(jnp.subtract, left, right)))


def test_rewards_become_advantages_within_groups():
    rollout, metrics = make_rollout(experience(gold=[1.0, 4.0, jnp.nan, 9.0]), **GROUPING)
    # The last row has no prompt and the third no score: the second group has nobody to compare.
    deviation = 3 / math.sqrt(2)
    np.testing.assert_allclose(rollout.advantages, np.asarray([-1.5, 1.5, 0, 0]) / (deviation + 1e-4), rtol=1e-5)
    np.testing.assert_array_equal(rollout.mask, MASK & np.asarray([[True], [True], [False], [False]]))
    metrics = values_of(metrics)
    assert metrics["reward"] == 2.5 and metrics["objective/unscored"] == 1.0
    np.testing.assert_allclose(metrics["reward_std"], deviation, rtol=1e-6)  # of the one group that has scores
    assert metrics["frac_reward_zero_std"] == 0.0
    equal = values_of(make_rollout(experience(gold=[3.0, 3.0, 1.0, 9.0]), **GROUPING)[1])
    assert equal["frac_reward_zero_std"] == 1.0  # one answer alone is a group that teaches nothing, too


def test_groups_of_equal_rewards_move_nothing_and_others_do():
    same, metrics = learned([0.1, 0.1, 7.0, 7.0])
    chex.assert_trees_all_equal(same, PARAMS)
    assert metrics["frac_reward_zero_std"] == 1.0 and metrics["grad_norm"] == 0.0
    other, metrics = learned([0.1, 0.2, 7.0, 7.0])
    assert distance(other, PARAMS) > 1e-3 and metrics["frac_reward_zero_std"] == 0.5


def test_an_unscored_answer_teaches_as_much_as_a_group_that_is_not_there():
    """Its partner is left alone and has no advantage, but counts as an answer of the batch."""
    with_it, metrics = learned([1.0, -1.0, 0.5, jnp.nan])
    tokens = LENGTHS[:3].sum()
    alone, _ = learned([1.0, -1.0])
    moved = jax.tree.map(lambda a, b, c: (a - b) * (LENGTHS[:2].sum() / tokens) - (c - b), alone, PARAMS, with_it)
    assert float(optax.tree.norm(moved)) < 1e-6
    assert metrics["objective/unscored"] == 1.0


@pytest.mark.parametrize("share_prompts", [False, True])
@pytest.mark.parametrize("mini_batches, micro_batches, kl", [(2, 2, "unbiased"), (1, 4, "exact")])
def test_before_the_first_update_the_ratio_is_exactly_1_and_the_kl_0(mini_batches, micro_batches, kl, share_prompts):
    learn = jax.jit(make_learn(
        POLICY, ADAM, **GROUPING,
        reduction="grpo", kl=kl, epochs=1, mini_batches=mini_batches, micro_batches=micro_batches, seed=0,
    ))  # fmt: skip
    params, prompts = player_params(), random_prompts(4)
    values = {**HYPER, "learning_rate": jnp.float32(0.0), "temperature": jnp.float32(0.6)}
    samples = SAMPLE(params, prompts, jax.random.key(1), dataclasses.replace(ENDING, temperature=0.6))
    rows_at_once = 8 // (mini_batches * micro_batches)
    judge = jax.jit(make_judge(POLICY, None, None, rows_at_once=rows_at_once, answers=2, share_prompts=share_prompts))
    found = judge({"policy": params}, {"reference": params}, prompts, samples, values)
    found = dataclasses.replace(found, scores={"gold": jnp.arange(8.0)})
    start = States({"policy": init_state(params, ADAM)})
    states, metrics = learn(start, {"reference": params}, found, values)
    metrics = values_of(metrics)
    assert metrics["ratio"] == 1.0 and metrics["clip_ratio/region_mean"] == 0.0 and metrics["kl"] == 0.0
    assert metrics["grad_norm"] > 0.01 and states.models["policy"].step == mini_batches


@pytest.mark.parametrize(
    ("reduction", "micro_batches"),
    [("grpo", 2), ("dapo", 2), ("dr_grpo", 2), ("bnpo", 1)],  # bnpo takes means of what rows are cut into
)
def test_answers_that_share_the_row_of_their_prompt_teach_the_same(reduction, micro_batches):
    params, reference, prompts = player_params(), player_params(seed=1), random_prompts(4)
    prompts = dataclasses.replace(prompts, segment_ids=prompts.segment_ids * (np.arange(4) != 2)[:, None])  # padding
    samples = SAMPLE(params, prompts, jax.random.key(1), ENDING)
    values = {**HYPER, "learning_rate": jnp.float32(1.0)}
    scorer = {"scorer": player_params(scalar=True)}

    def taught(share_prompts: bool):
        judge = make_judge(POLICY, None, SCORER, rows_at_once=4, answers=2, share_prompts=share_prompts)
        found = jax.jit(judge)({"policy": params}, {"reference": reference, **scorer}, prompts, samples, values)
        scores = found.scores["reward_model"].at[1].set(jnp.nan)  # nobody has an opinion on this one
        rollout, metrics = make_rollout(dataclasses.replace(found, scores={"reward_model": scores}), **GROUPING)
        rollout = dataclasses.replace(rollout, logprobs=rollout.logprobs + 0.1)  # as in a second epoch
        loss = policy_loss(POLICY, reduction=reduction, kl="k2")
        update = make_update(loss, rollout_totals, optax.identity(), micro_batches=micro_batches)
        state, more = jax.jit(update)(init_state(params, optax.identity()), {"reference": reference}, rollout, values)
        said = (found.logprobs, found.ref_logprobs, found.scores)
        return found.batch.tokens.shape, said, state.params, values_of({**metrics, **more})

    (apart, said, moved, metrics), (together, *others) = taught(False), taught(True)
    assert together[0] * together[1] < apart[0] * apart[1]
    chex.assert_trees_all_close(tuple(others), (said, moved, metrics), rtol=1e-4, atol=1e-5)


def update_of(reduction: str, micro_batches: int, kl: str = "k2"):
    """The gradient of one update on the second epoch's ratios, by identity optimizer at rate 1."""
    rollout, _ = make_rollout(fake_experience([1.0, 0.0, 0.3, 0.9, 2.0, 1.0, 0.0, 0.5]), **GROUPING)
    rollout = dataclasses.replace(rollout, logprobs=rollout.logprobs + 0.1)
    loss = policy_loss(FAKE, reduction=reduction, kl=kl)  # pyright: ignore[reportArgumentType]
    step = make_update(loss, rollout_totals, optax.identity(), micro_batches=micro_batches)
    values = {**HYPER, "learning_rate": jnp.float32(1.0)}
    state, metrics = jax.jit(step)(init_state(PARAMS, optax.identity()), {"reference": REFERENCE}, rollout, values)
    return jax.tree.map(jnp.subtract, PARAMS, state.params), values_of(metrics)


@pytest.mark.parametrize("reduction", ["grpo", "dapo", "dr_grpo"])
def test_micro_batches_equal_one_batch(reduction):
    whole, parts = update_of(reduction, 1), update_of(reduction, 4)
    chex.assert_trees_all_close(parts, whole, rtol=1e-4, atol=1e-6)


def test_reductions_differ_as_their_formulas_do():
    lengths, rows = LENGTHS, len(LENGTHS)
    costs = jnp.asarray(np.random.default_rng(0).normal(size=(rows, 3)), jnp.float32)
    mask = jnp.arange(3)[None, :] < jnp.asarray(lengths)[:, None]
    rollout = Rollout(batch=None, mask=mask, logprobs=costs, advantages=costs)  # pyright: ignore[reportArgumentType]
    totals, kept = rollout_totals(rollout), np.where(mask, costs, 0.0)
    expected = {
        "grpo": np.mean(kept.sum(axis=1) / lengths),
        "dapo": kept.sum() / lengths.sum(),
        "dr_grpo": kept.sum() / (3 * rows),
        "bnpo": kept.sum() / lengths.sum(),
    }
    found = {name: float(reduce(costs, mask, totals)) for name, reduce in REDUCTIONS.items()}
    assert found == pytest.approx(expected, rel=1e-5)
    halves = [float(REDUCTIONS["bnpo"](costs[part], mask[part], totals)) for part in (slice(0, 4), slice(4, 8))]
    own = [kept[part].sum() / lengths[part].sum() for part in (slice(0, 4), slice(4, 8))]
    assert sum(halves) == pytest.approx(np.mean(own), rel=1e-5)


def test_the_exact_kl_is_the_expectation_of_its_estimates():
    """The gradient of the exact term against that of the sum over the vocabulary, written out."""
    rollout, _ = make_rollout(fake_experience([1.0] * 4), **GROUPING)  # no advantages: the KL alone moves the policy

    def written_out(params):
        def logps(params):
            hidden = FAKE.apply(
                params, rollout.batch.tokens, positions=rollout.batch.positions, segment_ids=rollout.batch.segment_ids
            ).hidden
            hidden = jnp.take_along_axis(hidden, rollout.batch.columns[..., None], axis=1)
            return jax.nn.log_softmax(hidden @ FAKE.head(params).weight.T)

        own, ref = logps(params), logps(REFERENCE)
        kl = jnp.sum(jnp.exp(own) * (own - ref), axis=-1)
        return 0.1 * jnp.sum(jnp.where(rollout.mask, kl, 0.0)) / rollout.mask.sum()

    expected = jax.jit(jax.grad(written_out))(PARAMS)
    after, metrics = learned([1.0] * 4, kl="exact")
    found = jax.tree.map(lambda new, old: (old - new) / 0.1, after, PARAMS)
    chex.assert_trees_all_close(found, expected, rtol=1e-3, atol=1e-5)
    assert metrics["kl"] > 0.0


@pytest.mark.parametrize("kl", ["unbiased", "k2", "k3", "exact"])
def test_the_kl_term_pulls_the_policy_back(kl):
    """These tokens are not the policy's own, so an estimate is only about them; the exact KL is about all."""
    measure = "exact" if kl == "exact" else "k2"
    pulled, _ = learned([1.0] * 4, kl=kl)
    (_, before), (_, after) = (learned([1.0] * 4, params=params, kl=measure) for params in (PARAMS, pulled))
    assert after["kl"] < 0.999 * before["kl"]


def test_answers_that_scored_well_become_likelier():
    scores = [1.0, -1.0, -1.0, 1.0]
    found = fake_experience(scores)
    params, _ = learned(scores, values={**HYPER, "learning_rate": jnp.float32(0.01)})
    judge = jax.jit(make_judge(FAKE, None, None, rows_at_once=4, answers=2))
    prompts = prompt_batch([[1, 2], [1, 3]], 2)
    after = judge({"policy": params}, {}, prompts, found.samples, HYPER)
    np.testing.assert_array_equal(jnp.sign(jnp.sum(after.logprobs - found.logprobs, axis=1)), scores)


def test_configs_name_what_there_is():
    assert set(get_args(grpo_config.Reduction)) == set(get_args(steps.Reduction)) == set(REDUCTIONS)
    assert get_args(grpo_config.KLTerm) == get_args(steps.KLTerm)
    assert set(get_args(grpo_config.Baseline)) == set(get_args(grpo.Baseline)) == set(grpo._BASELINES)
    assert set(get_args(grpo_config.Scale)) == set(get_args(grpo.Scale)) == {"none", *grpo._DEVIATIONS}
