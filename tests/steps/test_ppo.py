"""PPO's updates: exact before the first one, and what the rows, rates and orders do to the others."""

import dataclasses
import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrlhf.generation.sampler import make_sampler
from jaxrlhf.losses import whiten
from jaxrlhf.ops.stats import values_of
from jaxrlhf.optim import adamw_direction
from jaxrlhf.steps.experience import Experience, make_judge, response_batch
from jaxrlhf.steps.ppo import make_learn, make_rollout, policy_loss, value_loss
from jaxrlhf.steps.scoring import token_logprobs, token_values
from jaxrlhf.steps.update import init_state
from jaxrlhf.types import Samples, TokenBatch
from tests.fakes import VOCAB, bigram_model, hyper, prompt_batch
from tests.players import CONFIG, EOS, POLICY, player_params, random_prompts
from tests.steps.experiences import HYPER as SHAPING
from tests.steps.experiences import MASK, experience

ADAM = adamw_direction(b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.1)
HYPER = hyper(
    learning_rate=0.0, critic_learning_rate=0.0, max_grad_norm=1.0, temperature=1.0, kl_coef=0.1, clip_eps=0.2,
    value_clip_eps=0.2, gamma=1.0, lam=0.95, missing_eos_penalty=1.0,
)  # fmt: skip
(FAKE, FAKE_PARAMS), (FAKE_CRITIC, CRITIC_PARAMS) = bigram_model(), bigram_model(CONFIG.vocab_size, scalar=True)
SAMPLE = make_sampler(POLICY, eos_ids=[EOS], max_new_tokens=6, answers=2)


@functools.partial(jax.jit, static_argnames="whiten_rewards")
def rolled(experience: Experience, whiten_rewards: bool = False, values: Any = SHAPING):
    rollout, metrics = make_rollout(experience, values, whiten_rewards=whiten_rewards)
    return rollout, values_of(metrics)


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
    rollout, _ = rolled(plain, values={**SHAPING, "gamma": jnp.float32(0.9)})
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
    assert metrics["objective/scores"] == 3.0
    assert metrics["objective/kl"] == pytest.approx(1 / 3)  # its tokens are the policy's all the same
    assert metrics["completions/mean_length"] == pytest.approx(8 / 3)  # the answer is still an answer


def test_rewards_are_summed_and_reported_apart():
    both, metrics = rolled(experience(gold=[2.0, -1.0, 4.0, 0.0], length=[-1.0, 0.5, 0.5, 0.0]))
    one, _ = rolled(experience(gold=[1.0, -0.5, 4.5, 0.0]))
    chex.assert_trees_all_close(both, one, rtol=1e-6)
    np.testing.assert_allclose(metrics["rewards/gold/mean"], 5 / 3, rtol=1e-6)
    np.testing.assert_allclose(metrics["rewards/length/mean"], 0.0, atol=1e-7)
    np.testing.assert_allclose(metrics["objective/scores"], 5 / 3, rtol=1e-6)


def test_whitened_rewards_have_variance_1_and_keep_their_mean():
    rewards = np.asarray([-0.05, 0.0, 2.05, -0.1, -1.0, 0.0, 0.0, 3.0])  # as above, row by row
    scaled = (rewards - rewards.mean()) / rewards.std(ddof=1) + rewards.mean()
    no_trace = {**SHAPING, "lam": jnp.float32(0.0), "gamma": jnp.float32(0.0)}  # a return is its reward
    rollout, _ = rolled(experience(gold=[2.0, -1.0, 4.0, 0.0]), whiten_rewards=True, values=no_trace)
    np.testing.assert_allclose(rollout.returns[rollout.mask], scaled, rtol=1e-5, atol=1e-6)


@functools.cache
def decoder_judge(rows_at_once: int):
    return jax.jit(make_judge(POLICY, FAKE_CRITIC, FAKE_CRITIC, rows_at_once=rows_at_once, answers=2))


def played(temperature: float, parts: int) -> tuple[Any, Experience]:
    """Hyper-parameters, and 8 answers of the decoder to 4 prompts; the reference is the policy."""
    params, critic, prompts = player_params(), CRITIC_PARAMS, random_prompts(4)
    samples = SAMPLE(params, prompts, jax.random.key(1), temperature=temperature)
    values = {**HYPER, "temperature": jnp.float32(temperature)}
    frozen = {"reference": params, "scorer": critic}
    return values, decoder_judge(8 // parts)({"policy": params, "critic": critic}, frozen, prompts, samples, values)


@pytest.mark.parametrize("mini_batches, micro_batches", [(1, 1), (1, 4), (2, 2)])
def test_before_the_first_update_the_ratio_is_exactly_1(mini_batches: int, micro_batches: int):
    learn = jax.jit(make_learn(
        POLICY, FAKE_CRITIC, ADAM,
        whiten_rewards=False, epochs=1, mini_batches=mini_batches, micro_batches=micro_batches, seed=0,
    ))  # fmt: skip
    states = {
        "policy": init_state(player_params(), ADAM),
        "critic": init_state(CRITIC_PARAMS, ADAM),
    }
    for temperature in (1.0, 0.6):
        values, experience = played(temperature, mini_batches * micro_batches)
        # At a rate of 0 every update is a first one, of its own rows.
        after, metrics = learn(states, {}, experience, values)
        chex.assert_trees_all_equal(after["policy"].params, states["policy"].params)
        metrics = values_of(metrics)
        assert metrics["val/ratio"] == 1.0
        assert metrics["policy/approxkl_avg"] == metrics["policy/clipfrac_avg"] == metrics["objective/kl"] == 0.0
        assert metrics["val/clipfrac_avg"] == metrics["skipped"] == metrics["critic/skipped"] == 0.0
        assert metrics["grad_norm"] > 0.01 and metrics["critic/grad_norm"] > 0.01
        assert after["policy"].step == after["critic"].step == mini_batches


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_the_sampler_and_the_training_forward_agree(temperature: float):
    _, experience = played(temperature, 1)
    samples = experience.samples
    assert jnp.abs(samples.sampling_logprobs).max() > 1.0
    np.testing.assert_allclose(samples.sampling_logprobs, experience.logprobs, atol=1e-5)
    untempered = jax.jit(lambda batch: token_logprobs(POLICY, player_params(), batch)[0].logp)(experience.batch)
    np.testing.assert_allclose(samples.logprobs, untempered, atol=1e-5)
    assert (jnp.abs(samples.logprobs - samples.sampling_logprobs).max() > 0.1) == (temperature != 1.0)


@jax.jit
def fake_forward(batch: TokenBatch):
    return token_logprobs(FAKE, FAKE_PARAMS, batch)[0].logp, token_values(FAKE_CRITIC, CRITIC_PARAMS, batch)


def fake_experience(scores: list[float]) -> Experience:
    """Answers of 3 random tokens to one prompt, one for each score; the reference differs from the policy."""
    rows, rng = len(scores), np.random.default_rng(0)
    samples = Samples(
        tokens=rng.integers(3, VOCAB, (rows, 3), np.int32),
        mask=np.ones((rows, 3), bool),
        terminated=np.ones(rows, bool),
        logprobs=np.zeros((rows, 3), np.float32),
        sampling_logprobs=np.zeros((rows, 3), np.float32),
    )
    batch = response_batch(prompt_batch([[1, 2]] * rows, 2), samples)
    logprobs, values = fake_forward(batch)
    return Experience(
        batch=batch,
        samples=samples,
        logprobs=logprobs,
        ref_logprobs=logprobs - 0.1,
        values=values,
        scores={"gold": jnp.asarray(scores)},
    )


@functools.cache
def fake_learn(epochs: int, mini_batches: int):
    traces: list[int] = []
    learn = make_learn(
        FAKE, FAKE_CRITIC, optax.identity(),
        whiten_rewards=True, epochs=epochs, mini_batches=mini_batches, micro_batches=1, seed=0,
    )  # fmt: skip

    def traced(*arguments):
        traces.append(1)
        return learn(*arguments)

    return jax.jit(traced, donate_argnums=0), traces


def learned(scores: list[float], epochs: int = 1, mini_batches: int = 1, step: int = 0, **values: float):
    optimizer = optax.identity()
    params = {"policy": FAKE_PARAMS, "critic": CRITIC_PARAMS}
    states = {name: init_state(jax.tree.map(jnp.copy, own), optimizer) for name, own in params.items()}
    states["policy"] = dataclasses.replace(states["policy"], step=jnp.int32(step))
    rates = {"learning_rate": 0.1, "critic_learning_rate": 0.1} | values
    return fake_learn(epochs, mini_batches)[0](states, {}, fake_experience(scores), {**HYPER, **hyper(**rates)})


def params_of(states: Any) -> Any:
    return {name: state.params for name, state in states.items()}


def test_an_unscored_answer_teaches_as_much_as_one_that_is_not_there():
    with_it, _ = learned([1.0, -1.0, 0.5, jnp.nan])
    without, _ = learned([1.0, -1.0, 0.5])
    chex.assert_trees_all_close(params_of(with_it), params_of(without), rtol=1e-5, atol=1e-6)
    other, _ = learned([1.0, -1.0, 0.5, 0.7])
    assert optax.tree.norm(jax.tree.map(jnp.subtract, params_of(with_it), params_of(other))) > 1e-3


def test_losses_read_nothing_outside_the_mask_of_the_rollout():
    shaped = jax.jit(functools.partial(make_rollout, whiten_rewards=False))
    rollout, _ = shaped(fake_experience([1.0, -1.0, jnp.nan, 0.5]), HYPER)
    names = ("logprobs", "values", "advantages", "returns")
    dirty = {name: jnp.where(rollout.mask, getattr(rollout, name), 9.0) for name in names}
    for loss_fn, params in [(policy_loss(FAKE), FAKE_PARAMS), (value_loss(FAKE_CRITIC), CRITIC_PARAMS)]:
        run = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))
        expected = run(params, None, rollout, 9.0, HYPER, jax.random.key(0))
        found = run(params, None, dataclasses.replace(rollout, **dirty), 9.0, HYPER, jax.random.key(0))
        chex.assert_trees_all_close(found, expected, rtol=1e-6)


def test_answers_that_scored_well_become_likelier_and_others_less_so():
    scores = [1.0, -1.0, 1.0, -1.0]
    experience = fake_experience(scores)
    states, _ = learned(scores, kl_coef=0.0)
    after, _ = token_logprobs(FAKE, states["policy"].params, experience.batch)
    np.testing.assert_array_equal(jnp.sign(jnp.sum(after.logp - experience.logprobs, axis=1)), scores)


def test_policy_and_critic_have_their_own_rates():
    policy_only, _ = learned([1.0, -1.0, 0.5, 0.7], critic_learning_rate=0.0)
    chex.assert_trees_all_equal(policy_only["critic"].params, CRITIC_PARAMS)
    critic_only, _ = learned([1.0, -1.0, 0.5, 0.7], learning_rate=0.0)
    chex.assert_trees_all_equal(critic_only["policy"].params, FAKE_PARAMS)
    for states, name, start in [(policy_only, "policy", FAKE_PARAMS), (critic_only, "critic", CRITIC_PARAMS)]:
        assert optax.tree.norm(jax.tree.map(jnp.subtract, states[name].params, start)) > 1e-3


def test_new_hyper_parameters_do_not_retrace_and_states_are_donated():
    learn, traces = fake_learn(1, 1)
    states = {
        "policy": init_state(jax.tree.map(jnp.copy, FAKE_PARAMS), optax.identity()),
        "critic": init_state(jax.tree.map(jnp.copy, CRITIC_PARAMS), optax.identity()),
    }
    experience = fake_experience([1.0, -1.0, 0.5, 0.7])
    after, _ = learn(states, {}, experience, HYPER)
    before = len(traces)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(params_of(states)))
    learn(after, {}, experience, {name: 0.5 * value for name, value in HYPER.items()})
    assert len(traces) == before
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(experience) if isinstance(leaf, jax.Array))


def test_later_epochs_are_shuffled_by_step():
    first, again, other = (learned([1.0, -1.0, 0.5, 0.7], 2, 2, step=step) for step in (0, 0, 1))
    chex.assert_trees_all_equal(params_of(first[0]), params_of(again[0]))
    assert first[0]["policy"].step == 4 and first[1]["val/ratio"].value != 1.0
    assert optax.tree.norm(jax.tree.map(jnp.subtract, params_of(first[0]), params_of(other[0]))) > 1e-6
