"""Eight devices equal one, in numbers: each method on each way to divide eight devices."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrlhf.generation.sampler import Sampler
from jaxrlhf.generation.settings import SamplingSettings
from jaxrlhf.ops.moments import no_moments
from jaxrlhf.ops.stats import values_of
from jaxrlhf.optim import adamw_direction
from jaxrlhf.sharding.mesh import make_mesh
from jaxrlhf.sharding.place import place_batch, place_replicated, to_host
from jaxrlhf.sharding.rules import shardings_for
from jaxrlhf.steps import grpo, rejection
from jaxrlhf.steps.dpo import dpo_totals, preference_loss
from jaxrlhf.steps.experience import Experience, States
from jaxrlhf.steps.kto import kto_totals, mismatched_kl, unpaired_loss
from jaxrlhf.steps.ppo import make_learn
from jaxrlhf.steps.responses import response_batch
from jaxrlhf.steps.reward import pairwise_loss, pairwise_totals
from jaxrlhf.steps.sft import sft_loss, sft_totals
from jaxrlhf.steps.shaping import Running
from jaxrlhf.steps.update import init_state, make_update
from jaxrlhf.types import Model, Samples
from tests.fakes import bigram_model, hyper, pair_batch, prompt_batch, score_batch, token_batch, unpaired_batch
from tests.players import EOS, POLICY, SCORER, all_equal, player_params, random_prompts

VOCAB = 24  # divides over eight devices, as the decoder's 40 does
LENGTHS = [6, 2, 5, 3, 1, 4, 6, 6, 0, 0, 2, 6, 5, 5, 3, 2]
MESHES = {"rows": (8, 1, 1), "params": (1, 8, 1), "all": (2, 2, 2)}
# A larger epsilon: where a gradient is nearly 0, Adam's direction is the sign of its rounding.
ADAM = adamw_direction(b1=0.9, b2=0.95, eps=1e-4, weight_decay=0.1)
HYPER = hyper(
    learning_rate=0.05, critic_learning_rate=0.05, max_grad_norm=1.0, beta=0.3, desirable_weight=1.0,
    undesirable_weight=2.0, temperature=0.8, kl_coef=0.1,
    center_coef=0.01, clip_low=0.2, clip_high=0.2, clip_eps=0.2, value_clip_eps=0.2, gamma=1.0, lam=0.95,
    missing_eos_penalty=1.0, score_clip=1.5, entropy_coef=0.1, ptx_coef=0.5, train_policy=1.0, early_stop_kl=0.02,
    kl_target=0.5, kl_horizon=64.0,
)  # fmt: skip

Players = tuple[tuple[Model, Any], tuple[Model, Any], Any]  # policy, critic, reference


def bigram_players() -> Players:
    return (
        bigram_model(VOCAB), bigram_model(VOCAB, scalar=True), bigram_model(VOCAB, seed=1)[1]
    )  # fmt: skip


def decoder_players() -> Players:
    return (POLICY, player_params()), (SCORER, player_params(scalar=True)), player_params(seed=1)


def supervised(players: Players):
    (model, params), *_ = players
    step = make_update(sft_loss(model), sft_totals, ADAM, micro_batches=2)
    return step, init_state(params, ADAM), None, token_batch(LENGTHS, 6, prompt=2, vocab=VOCAB)


def reward(players: Players):
    _, (model, params), _ = players
    step = make_update(pairwise_loss(model), pairwise_totals, ADAM)
    return step, init_state(params, ADAM), None, pair_batch(score_batch(LENGTHS, 6, vocab=VOCAB))


def preference(players: Players):
    (model, params), _, reference = players
    step = make_update(preference_loss(model), dpo_totals, ADAM)
    batch = pair_batch(token_batch(LENGTHS, 6, prompt=2, vocab=VOCAB))
    return step, init_state(params, ADAM), {"reference": reference}, batch


def unpaired(players: Players):
    (model, params), _, reference = players
    step = make_update(unpaired_loss(model), kto_totals, ADAM, coupling=mismatched_kl(model), micro_batches=2)
    rows, mismatched = (token_batch(LENGTHS, 6, prompt=2, vocab=VOCAB, seed=seed) for seed in (0, 2))
    return step, init_state(params, ADAM), {"reference": reference}, unpaired_batch(rows, mismatched)


def proximal(players: Players):
    """The exact KL at an adaptive price, normalised scores, texts beside, a policy that may rest, two micro-batches."""
    (policy, params), (critic, critic_params), _ = players
    learn = make_learn(
        policy, critic, ADAM, whiten_rewards=True, epochs=2, mini_batches=1, micro_batches=2, seed=0,
        normalize="standardize", may_rest=True,
    )  # fmt: skip
    models = {"policy": init_state(params, ADAM), "critic": init_state(critic_params, ADAM)}
    running = Running(kl_coef=jnp.float32(0.1), scores=no_moments())
    kl = np.random.default_rng(1).uniform(0, 1, (16, 4)).astype(np.float32)
    played, texts = dataclasses.replace(experience(), kl=kl), token_batch(2 * LENGTHS, 6, vocab=VOCAB, seed=3)

    def step(states, frozen, batch, values):
        return learn(states, frozen, batch[0], values, batch[1])

    return step, States(models, running), None, (played, texts)


def grouped(players: Players):
    """Four answers to each prompt, the exact KL to the reference, two micro-batches."""
    (policy, params), _, reference = players
    learn = grpo.make_learn(
        policy, ADAM, answers=4, baseline="leave_one_out", scale="batch", reduction="grpo", kl="exact",
        epochs=1, mini_batches=1, micro_batches=2, seed=0,
    )  # fmt: skip
    return learn, States({"policy": init_state(params, ADAM)}), {"reference": reference}, experience()


def chosen(players: Players):
    """The two best of four answers to each prompt that score enough, two micro-batches."""
    (policy, params), *_ = players
    learn = rejection.make_learn(
        policy, ADAM, answers=4, keep=2, min_score=-0.5, epochs=1, mini_batches=1, micro_batches=2, seed=0
    )  # fmt: skip
    return learn, States({"policy": init_state(params, ADAM)}), {}, experience()


def experience() -> Experience:
    """Answers of uneven lengths with random numbers all over; one has no score, one row is padding."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 5, 16)
    mask = np.arange(4)[None, :] < lengths[:, None]
    noise = np.where(mask, rng.normal(size=(5, 16, 4)), 0.0).astype(np.float32)
    samples = Samples(
        tokens=np.where(mask, rng.integers(1, VOCAB, (16, 4)), 0).astype(np.int32),
        mask=mask,
        terminated=lengths < 4,
        logprobs=noise[0],
        sampling_logprobs=noise[1],
    )
    prompts = prompt_batch([rng.integers(1, VOCAB, length) for length in [*rng.integers(1, 4, 15), 0]], 3)
    scores = rng.normal(size=16).astype(np.float32)
    scores[5] = np.nan
    return Experience(
        batch=jax.device_get(response_batch(prompts, samples)),
        samples=samples,
        logprobs=np.where(mask, 0.3 * noise[2] - 3.0, 0.0).astype(np.float32),
        ref_logprobs=np.where(mask, 0.3 * noise[3] - 3.0, 0.0).astype(np.float32),
        values=noise[4],
        scores={"gold": scores},
    )


METHODS: dict[str, Callable[[Players], Any]] = {
    "sft": supervised, "reward": reward, "dpo": preference, "kto": unpaired, "ppo": proximal,
    "grpo": grouped, "rejection": chosen,
}  # fmt: skip
PLAYERS: dict[str, Callable[[], Players]] = {"bigram": bigram_players, "decoder": decoder_players}


def five_steps(step: Any, state: Any, frozen: Any, batch: Any, values: Any) -> tuple[Any, list[Any]]:
    """The state after five steps on the same batch, and the metrics of each."""
    step, found = jax.jit(step, donate_argnums=0), []
    for _ in range(5):
        state, metrics = step(state, frozen, batch, values)
        found.append(to_host(values_of(metrics)))
    return to_host(state), found


@functools.cache
def on_one_device(players: str, method: str) -> tuple[Any, list[Any]]:
    step, state, frozen, batch = METHODS[method](PLAYERS[players]())
    return five_steps(step, jax.tree.map(jnp.copy, state), frozen, batch, HYPER)


@pytest.mark.parametrize("players, mesh, method", [
    *(("bigram", "all", method) for method in METHODS),
    *(
        pytest.param("bigram", mesh, method, marks=() if method in ("sft", "ppo", "kto") else pytest.mark.slow)
        for method in METHODS for mesh in ("rows", "params")
    ),
    *(pytest.param("decoder", "all", method, marks=pytest.mark.slow) for method in METHODS),
])  # fmt: skip
def test_five_steps_on_eight_devices_equal_those_on_one(players: str, mesh: str, method: str):
    expected, expected_metrics = on_one_device(players, method)
    step, state, frozen, batch = METHODS[method](PLAYERS[players]())
    devices = make_mesh(*MESHES[mesh])
    with jax.set_mesh(devices):
        placed = jax.device_put(jax.tree.map(jnp.copy, state), shardings_for(state, devices)[0])
        frozen = None if frozen is None else jax.device_put(frozen, shardings_for(frozen, devices)[0])
        found, metrics = five_steps(
            step, placed, frozen, place_batch(batch, devices), place_replicated(HYPER, devices)
        )  # fmt: skip
    # The first step's loss and gradient are the same function of the same numbers; later ones compound the rounding.
    chex.assert_trees_all_close(metrics[0], expected_metrics[0], rtol=1e-4, atol=1e-6)
    chex.assert_trees_all_close(metrics, expected_metrics, rtol=2e-3, atol=1e-4)
    chex.assert_trees_all_close(found, expected, rtol=2e-3, atol=2e-4)
    moved = jax.tree.map(lambda now, start: np.abs(now - np.asarray(start)).max(), params_of(found), params_of(state))
    assert min(jax.tree.leaves(moved)) > 0.05


def params_of(state: Any) -> list[Any]:
    models = state.models if isinstance(state, States) else {"policy": state}
    return [models[name].params for name in sorted(models)]


ENDING = SamplingSettings(eos_ids=(EOS,))


@pytest.mark.parametrize("mesh, slots", [("rows", None), ("params", None), ("all", None), ("all", 4)])
def test_sampled_tokens_do_not_depend_on_the_devices(mesh: str, slots: int | None):
    sample = Sampler(POLICY, max_new_tokens=6, slots=slots)
    params, prompts, key = player_params(), random_prompts(8), jax.random.key(0)
    expected = one_device_samples()
    devices = make_mesh(*MESHES[mesh])
    with jax.set_mesh(devices):
        placed = jax.device_put(params, shardings_for(params, devices)[0])
        samples = to_host(sample(placed, place_batch(prompts, devices), key, ENDING))
    assert all_equal((samples.tokens, samples.mask, samples.terminated), expected[:3])
    np.testing.assert_allclose(samples.logprobs, expected[3], atol=1e-5)


@functools.cache
def one_device_samples() -> Any:
    sample = Sampler(POLICY, max_new_tokens=6)
    samples = to_host(sample(player_params(), random_prompts(8), jax.random.key(0), ENDING))
    return samples.tokens, samples.mask, samples.terminated, samples.logprobs
