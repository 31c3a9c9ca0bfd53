import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxrlhf.ops.stats import values_of
from jaxrlhf.steps.experience import (
    Experience,
    make_judge,
    sample_metrics,
    total_scores,
)
from jaxrlhf.steps.responses import response_batch, scorer_batch
from jaxrlhf.steps.scoring import sequence_scores, token_logprobs, token_values
from tests.fakes import bigram_model
from tests.steps.experiences import HYPER, MASK, PROMPTS, SAMPLES, experience


def test_scores_are_weighted_sums_of_the_rewards_that_have_an_opinion():
    found = experience(gold=[2.0, jnp.nan, 4.0, 9.0], length=[-1.0, 0.5, jnp.nan, 9.0])
    scores, there = jax.jit(total_scores)(found)
    np.testing.assert_allclose(scores[:3], [1.0, 0.5, 4.0])
    np.testing.assert_array_equal(there, [True, True, True, False])  # the last row has no prompt
    weighted, _ = total_scores(found, {"gold": 0.5, "length": 10.0})
    np.testing.assert_allclose(weighted[:3], [-9.0, 5.0, 2.0])
    only, known = total_scores(found, {"length": 0.0})
    np.testing.assert_array_equal(known, [True, False, True, False])  # what weighs nothing has no say
    np.testing.assert_allclose(only[:3], [2.0, 0.0, 4.0])


def test_each_reward_is_reported_over_the_answers_it_knows():
    found = experience(gold=[2.0, jnp.nan, 4.0, 9.0], length=[-1.0, 0.5, 3.5, 9.0])
    metrics = values_of(sample_metrics(found, total_scores(found)[1]))
    assert metrics["rewards/gold/mean"] == 3.0 and metrics["rewards/length/mean"] == 1.0
    assert metrics["objective/unscored"] == 0.0


@functools.cache
def judge(rows_at_once: int, answers: int, with_scorer: bool):
    (policy, _), (critic, _) = bigram_model(), bigram_model(scalar=True)
    scorer = critic if with_scorer else None
    return jax.jit(make_judge(policy, critic, scorer, rows_at_once=rows_at_once, answers=answers))


def judged(rows_at_once: int = 4, answers: int = 1, scorer: Any = None, prompts: Any = PROMPTS) -> Experience:
    frozen = {"reference": bigram_model(seed=1)[1]} | ({} if scorer is None else {"scorer": scorer})
    params, critic = bigram_model()[1], bigram_model(scalar=True)[1]
    return judge(rows_at_once, answers, scorer is not None)(
        {"policy": params, "critic": critic}, frozen, prompts, SAMPLES, {**HYPER, "temperature": 0.5}
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


def test_without_critic_and_reference_nobody_says_anything_else():
    policy, params = bigram_model()
    judge = jax.jit(make_judge(policy, None, None, rows_at_once=4, answers=1))
    found = judge({"policy": params}, {}, PROMPTS, SAMPLES, {**HYPER, "temperature": 0.5})
    assert found.ref_logprobs is None and found.values is None and found.scores == {}
    np.testing.assert_allclose(found.logprobs, judged().logprobs, rtol=1e-6)
