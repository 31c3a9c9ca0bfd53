"""PPO's updates: exact before the first one, and what the rows, rates and orders do to the others."""

import dataclasses
import functools
import math
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrlhf.generation.sampler import Sampler
from jaxrlhf.generation.settings import SamplingSettings
from jaxrlhf.ops.stats import values_of
from jaxrlhf.optim import adamw_direction
from jaxrlhf.steps.experience import Experience, States, make_judge
from jaxrlhf.steps.ppo import PolicyBatch, PolicyTotals, make_learn, policy_loss, value_loss
from jaxrlhf.steps.responses import response_batch
from jaxrlhf.steps.scoring import token_logprobs, token_values
from jaxrlhf.steps.shaping import FIXED, Running, make_rollout
from jaxrlhf.steps.update import init_state
from jaxrlhf.types import Samples, TokenBatch
from tests.fakes import VOCAB, bigram_model, hyper, prompt_batch
from tests.players import CONFIG, EOS, POLICY, player_params, random_prompts

ADAM = adamw_direction(b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.1)
HYPER = hyper(
    learning_rate=0.0, critic_learning_rate=0.0, max_grad_norm=1.0, temperature=1.0, kl_coef=0.1, clip_eps=0.2,
    value_clip_eps=0.2, gamma=1.0, lam=0.95, missing_eos_penalty=1.0, score_clip=math.inf, entropy_coef=0.0,
)  # fmt: skip
(FAKE, FAKE_PARAMS), (FAKE_CRITIC, CRITIC_PARAMS) = bigram_model(), bigram_model(CONFIG.vocab_size, scalar=True)
SAMPLE, ENDING = Sampler(POLICY, max_new_tokens=6, answers=2), SamplingSettings(eos_ids=(EOS,))


@functools.cache
def decoder_judge(rows_at_once: int):
    return jax.jit(make_judge(POLICY, FAKE_CRITIC, FAKE_CRITIC, rows_at_once=rows_at_once, answers=2))


def played(temperature: float, parts: int) -> tuple[Any, Experience]:
    """Hyper-parameters, and 8 answers of the decoder to 4 prompts; the reference is the policy."""
    params, critic, prompts = player_params(), CRITIC_PARAMS, random_prompts(4)
    samples = SAMPLE(params, prompts, jax.random.key(1), dataclasses.replace(ENDING, temperature=temperature))
    values = {**HYPER, "temperature": jnp.float32(temperature)}
    frozen = {"reference": params, "scorer": critic}
    return values, decoder_judge(8 // parts)({"policy": params, "critic": critic}, frozen, prompts, samples, values)


@pytest.mark.parametrize("mini_batches, micro_batches", [(1, 1), (1, 4), (2, 2)])
def test_before_the_first_update_the_ratio_is_exactly_1(mini_batches: int, micro_batches: int):
    learn = jax.jit(make_learn(
        POLICY, FAKE_CRITIC, ADAM,
        whiten_rewards=False, epochs=1, mini_batches=mini_batches, micro_batches=micro_batches, seed=0,
    ))  # fmt: skip
    models = {
        "policy": init_state(player_params(), ADAM),
        "critic": init_state(CRITIC_PARAMS, ADAM),
    }
    for temperature in (1.0, 0.6):
        values, experience = played(temperature, mini_batches * micro_batches)
        # At a rate of 0 every update is a first one, of its own rows.
        (after, _), metrics = learn(States(models, FIXED), {}, experience, values)
        chex.assert_trees_all_equal(after["policy"].params, models["policy"].params)
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
    models = {name: init_state(jax.tree.map(jnp.copy, own), optimizer) for name, own in params.items()}
    models["policy"] = dataclasses.replace(models["policy"], step=jnp.int32(step))
    rates = {"learning_rate": 0.1, "critic_learning_rate": 0.1} | values
    learn, _ = fake_learn(epochs, mini_batches)
    after, metrics = learn(States(models, FIXED), {}, fake_experience(scores), {**HYPER, **hyper(**rates)})
    return after.models, metrics


@functools.cache
def optional_learn(epochs: int, micro_batches: int, may_rest: bool):
    return jax.jit(make_learn(
        FAKE, FAKE_CRITIC, optax.identity(), whiten_rewards=False, epochs=epochs, mini_batches=1,
        micro_batches=micro_batches, seed=0, may_rest=may_rest,
    ))  # fmt: skip


def learned_with(
    pretraining: TokenBatch | None = None, epochs: int = 1, micro_batches: int = 1, may_rest: bool = False,
    scores: tuple[float, ...] = (1.0, -1.0, 0.5, 0.7), **values: float,
) -> tuple[Any, dict[str, Any]]:  # fmt: skip
    models = {
        "policy": init_state(FAKE_PARAMS, optax.identity()),
        "critic": init_state(CRITIC_PARAMS, optax.identity()),
    }
    played = fake_experience(list(scores))
    rates = hyper(**{"learning_rate": 0.1, "critic_learning_rate": 0.1, "max_grad_norm": 1e9} | values)
    learn = optional_learn(epochs, micro_batches, may_rest)
    after, metrics = learn(States(models, FIXED), {}, played, {**HYPER, **rates}, pretraining)
    return after.models, values_of(metrics)


def texts(rows: int) -> TokenBatch:
    rng = np.random.default_rng(1)
    ids = rng.integers(3, VOCAB, (rows, 6), np.int32)
    mask = np.arange(5)[None] < rng.integers(1, 6, (rows, 1))
    whole = np.ones((rows, 5), np.int32)
    return TokenBatch(
        tokens=ids[:, :-1], targets=ids[:, 1:], mask=mask, positions=whole.cumsum(axis=1) - 1, segment_ids=whole
    )


@jax.jit
def text_loss(params: Any, rows: TokenBatch) -> jax.Array:
    logp = token_logprobs(FAKE, params, rows)[0].logp
    return -jnp.sum(logp) / jnp.sum(rows.mask)


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_pretraining_rows_add_the_gradient_of_their_lm_loss(micro_batches: int):
    rows = texts(6)
    plain, _ = learned_with(micro_batches=micro_batches)
    with_texts, metrics = learned_with(rows, micro_batches=micro_batches, ptx_coef=3.0)
    gradient = jax.grad(text_loss)(FAKE_PARAMS, rows)
    expected = jax.tree.map(lambda p, g: p - 0.1 * 3.0 * g, plain["policy"].params, gradient)
    chex.assert_trees_all_close(with_texts["policy"].params, expected, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_equal(with_texts["critic"].params, plain["critic"].params)
    assert metrics["loss/ptx_avg"] == pytest.approx(float(text_loss(FAKE_PARAMS, rows)), rel=1e-6)


def test_each_update_takes_pretraining_rows_of_its_own():
    rows = texts(4)
    _, metrics = learned_with(rows, epochs=2, ptx_coef=0.0, learning_rate=0.0)
    losses = [text_loss(FAKE_PARAMS, jax.tree.map(lambda leaf, n=n: leaf[n::2], rows)) for n in (0, 1)]
    counts = [int(rows.mask[n::2].sum()) for n in (0, 1)]
    assert metrics["loss/ptx_avg"] == pytest.approx(float(np.average(losses, weights=counts)), rel=1e-6)


def test_an_entropy_bonus_adds_the_gradient_of_the_mean_entropy():
    played = fake_experience([1.0, -1.0, 0.5, 0.7])

    def entropy(params: Any) -> jax.Array:
        out, mask = token_logprobs(FAKE, params, played.batch, want=["entropy"])
        return jnp.sum(out.entropy) / jnp.sum(mask)

    plain, _ = learned_with()
    with_bonus, metrics = learned_with(entropy_coef=2.0)
    gradient = jax.jit(jax.grad(entropy))(FAKE_PARAMS)
    expected = jax.tree.map(lambda p, g: p + 0.1 * 2.0 * g, plain["policy"].params, gradient)
    chex.assert_trees_all_close(with_bonus["policy"].params, expected, rtol=1e-5, atol=1e-6)
    assert metrics["policy/entropy_avg"] == pytest.approx(float(jax.jit(entropy)(FAKE_PARAMS)), rel=1e-5)


def test_the_policy_rests_while_the_critic_warms_up():
    rests, metrics = learned_with(epochs=2, may_rest=True, train_policy=0.0, early_stop_kl=math.inf)
    chex.assert_trees_all_equal(rests["policy"].params, FAKE_PARAMS)
    assert rests["policy"].step == rests["critic"].step == 2
    assert metrics["policy/rest_ratio"] == 1.0 and np.isnan(metrics["loss/policy_avg"])
    both, _ = learned_with(epochs=2)
    chex.assert_trees_all_equal(rests["critic"].params, both["critic"].params)


def test_the_policy_rests_once_it_has_moved_far_from_the_one_that_sampled():
    go = {"may_rest": True, "train_policy": 1.0, "learning_rate": 1.0}
    three, metrics = learned_with(epochs=3, **go, early_stop_kl=math.inf)
    plain, _ = learned_with(epochs=3, learning_rate=1.0)
    chex.assert_trees_all_equal(three["policy"].params, plain["policy"].params)
    assert metrics["policy/rest_ratio"] == 0.0
    # The first update finds a KL of 0, the second the first one's; it is the last.
    two, _ = learned_with(epochs=2, learning_rate=1.0)
    stopped, metrics = learned_with(epochs=3, **go, early_stop_kl=1e-6)
    assert metrics["policy/rest_ratio"] == pytest.approx(1 / 3)
    assert stopped["policy"].step == stopped["critic"].step == 3
    chex.assert_trees_all_close(stopped["critic"].params, plain["critic"].params, rtol=1e-6)
    assert optax.tree.norm(jax.tree.map(jnp.subtract, stopped["policy"].params, plain["policy"].params)) > 1e-4
    chex.assert_trees_all_close(stopped["policy"].params, two["policy"].params, rtol=1e-4, atol=1e-5)


def params_of(models: Any) -> Any:
    return {name: state.params for name, state in models.items()}


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
    soiled, nine = dataclasses.replace(rollout, **dirty), PolicyTotals(jnp.float32(9.0), None)
    for loss_fn, params, arguments, clean in [
        (policy_loss(FAKE), FAKE_PARAMS, (PolicyBatch(soiled), nine), (PolicyBatch(rollout), nine)),
        (value_loss(FAKE_CRITIC), CRITIC_PARAMS, (soiled, 9.0), (rollout, 9.0)),
    ]:
        run = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))
        expected = run(params, None, *clean, HYPER, jax.random.key(0))
        found = run(params, None, *arguments, HYPER, jax.random.key(0))
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
    models = {
        "policy": init_state(jax.tree.map(jnp.copy, FAKE_PARAMS), optax.identity()),
        "critic": init_state(jax.tree.map(jnp.copy, CRITIC_PARAMS), optax.identity()),
    }
    experience = fake_experience([1.0, -1.0, 0.5, 0.7])
    after, _ = learn(States(models, FIXED), {}, experience, HYPER)
    before = len(traces)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(params_of(models)))
    learn(after, {}, experience, {name: 0.5 * value for name, value in HYPER.items()})
    assert len(traces) == before
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(experience) if isinstance(leaf, jax.Array))


def test_later_epochs_are_shuffled_by_step():
    first, again, other = (learned([1.0, -1.0, 0.5, 0.7], 2, 2, step=step) for step in (0, 0, 1))
    chex.assert_trees_all_equal(params_of(first[0]), params_of(again[0]))
    assert first[0]["policy"].step == 4 and first[1]["val/ratio"].value != 1.0
    assert optax.tree.norm(jax.tree.map(jnp.subtract, params_of(first[0]), params_of(other[0]))) > 1e-6


@pytest.mark.parametrize("trains, price", [(1.0, 0.5 * (1 + 0.2 * 4 / 40)), (0.0, 0.5)])
def test_the_price_of_a_nat_stays_while_the_critic_warms_up(trains: float, price: float):
    models = {
        "policy": init_state(FAKE_PARAMS, optax.identity()),
        "critic": init_state(CRITIC_PARAMS, optax.identity()),
    }
    values = hyper(train_policy=trains, early_stop_kl=math.inf, kl_target=0.1, kl_horizon=40.0)  # the KL is 0.3
    states = States(models, Running(kl_coef=jnp.float32(0.5)))
    after, _ = optional_learn(1, 1, True)(states, {}, fake_experience([1.0, -1.0, 0.5, 0.7]), {**HYPER, **values})
    assert after.running.kl_coef == pytest.approx(price, rel=1e-6)
