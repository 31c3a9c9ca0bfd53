import dataclasses
import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrlhf.losses import whiten
from jaxrlhf.ops.stats import values_of
from jaxrlhf.steps.rollout import Experience, make_judge, make_rollout, response_batch, scorer_batch
from jaxrlhf.steps.scoring import sequence_scores, token_logprobs, token_values
from jaxrlhf.types import Samples
from tests.fakes import bigram_model, hyper, prompt_batch

EOS = 2
PROMPTS = prompt_batch([[5, 6], [7], [8, 9, 10], []], 3)  # the last row is padding
MASK = np.asarray([[1, 1, 1], [1, 1, 0], [1, 1, 1], [1, 0, 0]], bool)
SAMPLES = Samples(
    tokens=np.asarray([[11, 12, EOS], [13, EOS, 0], [14, 15, 16], [EOS, 0, 0]], np.int32),
    mask=MASK,
    terminated=np.asarray([True, True, False, True]),
    logprobs=np.where(MASK, -1.0, 0.0).astype(np.float32),
    sampling_logprobs=np.where(MASK, -1.0, 0.0).astype(np.float32),
)
KL = np.asarray([[0.5, 0.0, -0.5], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [9.0, 0.0, 0.0]], np.float32)
HYPER = hyper(kl_coef=0.1, gamma=1.0, lam=0.5, missing_eos_penalty=1.0, temperature=1.0)


def experience(**scores: list[float]) -> Experience:
    """Every token has log-probability -2 under the policy; the critic says 0."""
    logprobs = np.where(MASK, -2.0, 0.0).astype(np.float32)
    return Experience(
        batch=response_batch(PROMPTS, SAMPLES),
        samples=SAMPLES,
        logprobs=logprobs,
        ref_logprobs=logprobs - KL,
        values=np.zeros((4, 3), np.float32),
        scores={name: jnp.asarray(values) for name, values in scores.items()},
    )


@functools.partial(jax.jit, static_argnames="whiten_rewards")
def rolled(experience: Experience, whiten_rewards: bool = False, values: Any = HYPER):
    rollout, metrics = make_rollout(experience, values, whiten_rewards=whiten_rewards)
    return rollout, values_of(metrics)


def test_prompt_and_answer_become_one_row_that_is_shifted_once():
    batch = response_batch(PROMPTS, SAMPLES)
    np.testing.assert_array_equal(batch.tokens[:2], [[1, 5, 6, 11, 12], [1, 1, 7, 13, EOS]])
    np.testing.assert_array_equal(batch.targets[:2], [[5, 6, 11, 12, EOS], [1, 7, 13, EOS, 0]])
    np.testing.assert_array_equal(batch.mask[:2], [[0, 0, 1, 1, 1], [0, 0, 1, 1, 0]])
    np.testing.assert_array_equal(batch.segment_ids[:2], [[0, 1, 1, 1, 1], [0, 0, 1, 1, 1]])
    np.testing.assert_array_equal(batch.positions[:2], [[0, 0, 1, 2, 3], [0, 0, 0, 1, 2]])
    assert batch.columns is not None
    np.testing.assert_array_equal(jnp.take_along_axis(batch.targets, batch.columns, axis=1), SAMPLES.tokens)
    np.testing.assert_array_equal(jnp.take_along_axis(batch.mask, batch.columns, axis=1), MASK)


def test_a_scorer_reads_the_last_real_token():
    batch = scorer_batch(PROMPTS, SAMPLES)
    np.testing.assert_array_equal(batch.tokens[:2], [[1, 5, 6, 11, 12, EOS], [1, 1, 7, 13, EOS, 0]])
    np.testing.assert_array_equal(batch.tokens[batch.mask], [EOS, EOS, 16, EOS])
    np.testing.assert_array_equal(batch.mask.sum(axis=1), [1, 1, 1, 1])


def test_the_score_lands_on_the_last_token_and_the_kl_on_every_one():
    rollout, _ = rolled(experience(gold=[2.0, -1.0, 4.0, 7.0]))
    # lambda = 1/2 and V = 0: each advantage is its reward and half of the next advantage.
    #   row 0, ends with EOS: rewards -0.05, 0, 0.05 + 2.    row 1, EOS at its second token: -0.1, -1.
    #   row 2, cut off: 0, 0, 4 - 1 for the missing EOS.     row 3 has no prompt.
    expected = [[-0.05 + 1.025 / 2, 2.05 / 2, 2.05], [-0.1 - 0.5, -1.0, 0.0], [0.75, 1.5, 3.0], [0.0, 0.0, 0.0]]
    np.testing.assert_allclose(rollout.returns, expected, rtol=1e-5, atol=1e-7)
    kept = MASK & np.asarray([[True], [True], [True], [False]])
    np.testing.assert_array_equal(rollout.mask, kept)
    np.testing.assert_allclose(rollout.advantages, whiten(jnp.asarray(expected), jnp.asarray(kept)), rtol=1e-4)


def test_returns_take_the_critic_into_account():
    values = np.where(MASK, np.asarray([[0.5, 1.0, -1.0]], np.float32), 0.0).astype(np.float32)
    plain = dataclasses.replace(
        experience(gold=[2.0, 0.0, 0.0, 0.0]), values=values, ref_logprobs=np.float32(-2.0) * MASK
    )
    rollout, _ = rolled(plain, values={**HYPER, "gamma": jnp.float32(0.9)})
    # deltas: 2 - (-1) = 3;  0.9 * (-1) - 1 = -1.9;  0.9 * 1 - 0.5 = 0.4; each advantage adds 0.45 of the next.
    last, middle = 3.0, -1.9 + 0.45 * 3.0
    np.testing.assert_allclose(rollout.returns[0], [0.4 + 0.45 * middle + 0.5, middle + 1.0, last - 1.0], rtol=1e-5)


def test_metrics_leave_padding_rows_out():
    _, metrics = rolled(experience(gold=[2.0, -1.0, 4.0, 700.0]))
    expected = {
        "objective/kl": (0.0 + 1.0 + 0.0) / 3,
        "objective/entropy": 2.0 * (3 + 2 + 3) / 3,
        "objective/non_score_reward": -0.1 / 3,
        "objective/scores": 5.0 / 3,
        "objective/rlhf_reward": (2.0 - 1.0 - 0.1 + 3.0) / 3,
        "objective/unscored": 0.0,
        "rewards/gold/mean": 5.0 / 3,
        "val/num_eos_tokens": 2.0,
        "completions/mean_length": 8 / 3,
        "completions/min_length": 2.0,
        "completions/max_length": 3.0,
        "completions/clipped_ratio": 1 / 3,
        "sampling/sampling_logp_difference/mean": 1.0,
        "sampling/sampling_logp_difference/max": 1.0,
        "num_tokens": 4.0 + 3.0 + 5.0,
    }
    chex.assert_trees_all_close(metrics, expected, rtol=1e-5)


@pytest.mark.parametrize("unknown", [jnp.nan, jnp.inf])
def test_an_answer_without_a_score_teaches_nothing_and_is_counted(unknown: float):
    rollout, metrics = rolled(experience(gold=[2.0, unknown, 4.0, unknown]))
    np.testing.assert_array_equal(rollout.mask, MASK & np.asarray([[True], [False], [True], [False]]))
    assert all(jnp.isfinite(leaf).all() for leaf in (rollout.advantages, rollout.returns))
    assert not rollout.advantages[1].any() and not rollout.returns[1].any()
    assert metrics["objective/unscored"] == 1.0
    assert metrics["objective/scores"] == 3.0 and metrics["objective/kl"] == 0.0
    assert metrics["completions/mean_length"] == pytest.approx(8 / 3)  # the answer is still an answer


def test_rewards_are_summed_and_reported_apart():
    both, metrics = rolled(experience(gold=[2.0, -1.0, 4.0, 0.0], length=[-1.0, 0.5, 0.5, 0.0]))
    one, _ = rolled(experience(gold=[1.0, -0.5, 4.5, 0.0]))
    chex.assert_trees_all_close(both, one, rtol=1e-6)
    np.testing.assert_allclose(metrics["rewards/gold/mean"], 5 / 3, rtol=1e-6)
    np.testing.assert_allclose(metrics["rewards/length/mean"], 0.0, atol=1e-7)
    np.testing.assert_allclose(metrics["objective/scores"], 5 / 3, rtol=1e-6)


def test_an_answer_that_one_of_two_rewards_does_not_score_teaches_nothing():
    rollout, metrics = rolled(experience(gold=[2.0, jnp.nan, 4.0, 0.0], length=[0.0, 0.0, 0.0, 0.0]))
    assert not rollout.mask[1].any() and metrics["objective/unscored"] == 1.0


def test_whitened_rewards_have_variance_1_and_keep_their_mean():
    rewards = np.asarray([-0.05, 0.0, 2.05, -0.1, -1.0, 0.0, 0.0, 3.0])  # as above, row by row
    scaled = (rewards - rewards.mean()) / rewards.std(ddof=1) + rewards.mean()
    no_trace = {**HYPER, "lam": jnp.float32(0.0), "gamma": jnp.float32(0.0)}  # a return is its reward
    rollout, _ = rolled(experience(gold=[2.0, -1.0, 4.0, 0.0]), whiten_rewards=True, values=no_trace)
    np.testing.assert_allclose(rollout.returns[rollout.mask], scaled, rtol=1e-5, atol=1e-6)


@functools.cache
def judge(rows_at_once: int, answers: int, with_scorer: bool):
    (policy, _), (critic, _) = bigram_model(), bigram_model(scalar=True)
    scorer = critic if with_scorer else None
    return jax.jit(make_judge(policy, critic, scorer, rows_at_once=rows_at_once, answers=answers))


def judged(rows_at_once: int = 4, answers: int = 1, scorer: Any = None, prompts: Any = PROMPTS) -> Experience:
    frozen = {"reference": bigram_model(seed=1)[1]} | ({} if scorer is None else {"scorer": scorer})
    params, critic = bigram_model()[1], bigram_model(scalar=True)[1]
    return judge(rows_at_once, answers, scorer is not None)(
        params, critic, frozen, prompts, SAMPLES, {**HYPER, "temperature": 0.5}
    )


def test_everyone_judges_the_same_rows_at_the_sampling_temperature():
    found, batch = judged(), response_batch(PROMPTS, SAMPLES)
    (policy, params), (_, reference) = bigram_model(), bigram_model(seed=1)
    for own, values in [(params, found.logprobs), (reference, found.ref_logprobs)]:
        np.testing.assert_allclose(
            values, jax.jit(lambda own: token_logprobs(policy, own, batch, temperature=0.5)[0].logp)(own), rtol=1e-5
        )
    np.testing.assert_allclose(found.values, token_values(*bigram_model(scalar=True), batch), rtol=1e-5)
    assert found.scores == {} and not found.logprobs[~MASK].any()


def test_parts_and_repeated_prompts_change_nothing():
    scorer = bigram_model(scalar=True, seed=5)[1]
    whole = judged(scorer=scorer)
    assert np.unique(whole.scores["reward_model"]).size > 1
    for rows_at_once in (1, 2, 8):
        chex.assert_trees_all_close(judged(rows_at_once, scorer=scorer), whole, rtol=1e-6)
    pairs = jax.tree.map(lambda leaf: leaf[:2], PROMPTS)
    twice = jax.tree.map(lambda leaf: np.repeat(leaf[:2], 2, axis=0), PROMPTS)
    chex.assert_trees_all_close(judged(answers=2, prompts=pairs), judged(prompts=twice), rtol=1e-6)


def test_a_reward_model_scores_the_last_token():
    params = bigram_model(scalar=True, seed=5)[1]
    scores = judged(scorer=params).scores["reward_model"]
    expected = sequence_scores(bigram_model(scalar=True)[0], params, scorer_batch(PROMPTS, SAMPLES))
    np.testing.assert_allclose(scores, expected, rtol=1e-5)
