"""Adapters over a base: whoever computes is given whole parameters, and the base is there once."""

import dataclasses
import functools
import math
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxrlhf.generation.sampler import Sampler
from jaxrlhf.generation.settings import SamplingSettings
from jaxrlhf.models.config import ModelConfig
from jaxrlhf.models.decoder import make_model, param_shapes
from jaxrlhf.models.lora import init_adapters
from jaxrlhf.models.lora_config import LoraConfig
from jaxrlhf.models.quantized import keep_as
from jaxrlhf.ops.stats import values_of
from jaxrlhf.optim import adamw_direction
from jaxrlhf.sharding.mesh import make_mesh
from jaxrlhf.sharding.place import place_batch, place_replicated, to_host
from jaxrlhf.sharding.rules import shardings_for
from jaxrlhf.steps import grpo, ppo
from jaxrlhf.steps.adapters import everyone, judge_over, loss_over
from jaxrlhf.steps.dpo import dpo_totals, preference_loss
from jaxrlhf.steps.experience import States, make_judge
from jaxrlhf.steps.kto import mismatched_kl
from jaxrlhf.steps.shaping import FIXED
from jaxrlhf.steps.update import init_state, make_update
from tests.fakes import hyper, pair_batch, token_batch, unpaired_batch
from tests.players import CONFIG, EOS, player_params, random_prompts
from tests.steps.experiences import PROMPTS, SAMPLES

LORA = LoraConfig(rank=2)
POLICY = make_model(CONFIG, None, LORA)
CRITIC = make_model(dataclasses.replace(CONFIG, scalar_head=True), None, LORA)
BASES = {"policy": "base", "reference": "base", "critic": "base"}
ADAM = adamw_direction(b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.1)
GENTLE = adamw_direction(b1=0.9, b2=0.95, eps=1e-4, weight_decay=0.1)  # rounding of a gradient near 0 stays small
HYPER = hyper(
    learning_rate=0.0, critic_learning_rate=0.0, max_grad_norm=1.0, temperature=0.7, kl_coef=0.1, clip_eps=0.2,
    value_clip_eps=0.2, gamma=1.0, lam=0.95, missing_eos_penalty=1.0, score_clip=math.inf, entropy_coef=0.0,
    beta=0.3, clip_low=0.2, clip_high=0.2,
)  # fmt: skip


def adapters(config: ModelConfig = CONFIG, seed: int = 0) -> Any:
    """Adapters that add something."""
    fresh = init_adapters(config, LORA, jax.random.key(seed))
    return jax.tree.map(lambda leaf: leaf + 0.2 * jax.random.normal(jax.random.key(seed), leaf.shape), fresh)


def critic_part(config: ModelConfig = CONFIG) -> Any:
    return {**adapters(config, seed=1), "score": {"kernel": jnp.full((1, config.hidden_size), 0.1)}}


def test_everyone_is_whole_and_nothing_is_copied():
    base, own, scorer = player_params(), adapters(), player_params(scalar=True)
    models = everyone({"policy": own}, {"base": base, "scorer": scorer}, {"policy": "base", "reference": "base"})
    kernel = base["layers"]["mlp"]["up_proj"]["kernel"]
    assert models["policy"]["layers"]["mlp"]["up_proj"] == {"kernel": kernel, **own["layers"]["mlp"]["up_proj"]}
    assert models["reference"]["layers"]["mlp"]["up_proj"]["kernel"] is kernel
    assert models["reference"] == base and models["scorer"] is scorer


def test_a_model_that_stands_over_nothing_is_left_alone():
    def loss(params, frozen):
        return params, frozen

    assert loss_over(loss, "policy", {}) is loss and loss_over(loss, "policy", {"critic": "base"}) is loss


def test_the_loss_is_that_of_the_whole_model_and_the_gradient_of_the_adapters_alone():
    base, own, batch = player_params(), adapters(), pair_batch(token_batch([3, 5, 4, 4], 5, prompt=2, vocab=40))
    plain = preference_loss(POLICY)
    over = loss_over(plain, "policy", BASES)
    whole = everyone({"policy": own}, {"base": base}, BASES)

    @functools.partial(jax.jit, static_argnums=0)
    def differentiate(loss, params, frozen):
        (value, _), gradient = jax.value_and_grad(loss, has_aux=True)(params, frozen, batch, 2.0, HYPER, None)
        return value, gradient

    found, gradient = differentiate(over, own, {"base": base})
    expected, all_of_it = differentiate(plain, whole["policy"], whole)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert abs(found - math.log(2)) > 0.01
    assert jax.tree.structure(gradient) == jax.tree.structure(own)
    for side in ("lora_a", "lora_b"):
        part = gradient["layers"]["mlp"]["up_proj"][side]
        assert jnp.abs(part).max() > 1e-3
        np.testing.assert_allclose(part, all_of_it["layers"]["mlp"]["up_proj"][side], rtol=1e-5, atol=1e-7)


def test_what_couples_rows_is_of_the_whole_models_too():
    base, own, rows = player_params(), adapters(seed=4), token_batch([3, 5, 4, 4], 5, prompt=2, vocab=40)
    parts = jax.tree.map(lambda leaf: leaf[None], unpaired_batch(rows, rows))
    coupling = mismatched_kl(POLICY)
    whole = everyone({"policy": own}, {"base": base}, BASES)
    found = jax.jit(loss_over(coupling, "policy", BASES))(own, {"base": base}, parts, HYPER)
    np.testing.assert_allclose(found, jax.jit(coupling)(whole["policy"], whole, parts, HYPER), rtol=1e-6)
    assert found > 0.01


def test_only_adapters_have_optimizer_state_and_move():
    base, own, batch = player_params(), adapters(), pair_batch(token_batch([3, 5, 4, 4], 5, prompt=2, vocab=40))
    step = jax.jit(make_update(loss_over(preference_loss(POLICY), "policy", BASES), dpo_totals, ADAM))
    state = init_state(own, ADAM)
    count = sum(leaf.size for leaf in jax.tree.leaves(own))
    assert sum(leaf.size for leaf in jax.tree.leaves(state.opt_state)) == 2 * count + 1
    losses = []
    for _ in range(8):
        state, metrics = step(state, {"base": base}, batch, {**HYPER, "learning_rate": jnp.float32(0.01)})
        losses.append(values_of(metrics)["loss"])
    assert losses[-1] < 0.5 * losses[0]
    assert jax.tree.structure(state.params) == jax.tree.structure(own)


def test_steps_on_eight_devices_equal_those_on_one():
    base, own = keep_as(player_params(), "int8"), adapters()
    batch = jax.device_get(pair_batch(token_batch([3, 5, 4, 4] * 4, 5, prompt=2, vocab=40)))
    step = jax.jit(make_update(loss_over(preference_loss(POLICY), "policy", BASES), dpo_totals, GENTLE))
    values = {**HYPER, "learning_rate": jnp.float32(0.01)}

    def three_steps(state: Any, frozen: Any, batch: Any, values: Any) -> Any:
        found = []
        for _ in range(3):
            state, metrics = step(state, frozen, batch, values)
            found.append(to_host(values_of(metrics)))
        return to_host(state.params), found

    expected = three_steps(init_state(own, GENTLE), {"base": base}, batch, values)
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    with jax.set_mesh(mesh):
        state, frozen = (
            jax.device_put(tree, shardings_for(tree, mesh)[0]) for tree in (init_state(own, GENTLE), {"base": base})
        )
        found = three_steps(state, frozen, place_batch(batch, mesh), place_replicated(values, mesh))
    chex.assert_trees_all_close(found, expected, rtol=2e-3, atol=1e-4)


def test_before_the_first_update_of_ppo_the_ratio_is_exactly_1_and_the_kl_that_to_the_base():
    base = keep_as(player_params(), "int8")
    trained, frozen = {"policy": adapters(), "critic": critic_part()}, {"base": base}
    prompts = random_prompts(4)
    sampler = Sampler(POLICY, max_new_tokens=6, answers=2)
    settings = SamplingSettings(temperature=0.7, eos_ids=(EOS,))
    samples = sampler(everyone(trained, frozen, BASES)["policy"], prompts, jax.random.key(1), settings)
    judge = judge_over(make_judge(POLICY, CRITIC, None, rows_at_once=4, answers=2), BASES)
    experience = jax.jit(judge)(trained, frozen, prompts, samples, HYPER)
    np.testing.assert_allclose(samples.sampling_logprobs, experience.logprobs, atol=1e-5)
    experience = dataclasses.replace(experience, scores={"some": jnp.arange(8.0)})
    learn = jax.jit(ppo.make_learn(
        POLICY, CRITIC, ADAM, whiten_rewards=False, epochs=1, mini_batches=1, micro_batches=2, seed=0, bases=BASES,
    ))  # fmt: skip
    states = States({name: init_state(params, ADAM) for name, params in trained.items()}, FIXED)
    metrics = values_of(learn(states, frozen, experience, HYPER)[1])
    assert metrics["val/ratio"] == 1.0 and metrics["policy/approxkl_avg"] == metrics["val/clipfrac_avg"] == 0.0
    assert abs(metrics["objective/kl"]) > 0.01  # the reference is the base, which the adapters left
    assert metrics["grad_norm"] > 0.01 and metrics["critic/grad_norm"] > 0.01


def test_the_reference_of_grpo_is_the_base_in_its_loss_too():
    base, own, prompts = player_params(), adapters(), random_prompts(4)
    bases = {"policy": "base", "reference": "base"}
    policy = everyone({"policy": own}, {"base": base}, bases)["policy"]
    sampler = Sampler(POLICY, max_new_tokens=6, answers=2)
    samples = sampler(policy, prompts, jax.random.key(1), SamplingSettings(temperature=0.7, eos_ids=(EOS,)))
    judge = judge_over(make_judge(POLICY, None, None, rows_at_once=8, answers=2), bases)
    experience = jax.jit(judge)({"policy": own}, {"base": base}, prompts, samples, HYPER)
    experience = dataclasses.replace(experience, scores={"some": jnp.arange(8.0)})
    learn = jax.jit(grpo.make_learn(
        POLICY, ADAM, answers=2, baseline="mean", scale="group", reduction="dapo", kl="exact", epochs=1,
        mini_batches=1, micro_batches=1, seed=0, bases=bases,
    ))  # fmt: skip
    metrics = values_of(learn(States({"policy": init_state(own, ADAM)}), {"base": base}, experience, HYPER)[1])
    assert metrics["kl"] > 0.01 and metrics["clip_ratio/region_mean"] == 0.0


def test_ppo_holds_one_base():
    config = dataclasses.replace(
        CONFIG, vocab_size=512, hidden_size=128, intermediate_size=512, num_layers=4, head_dim=64
    )
    policy, critic = (make_model(dataclasses.replace(config, scalar_head=s), None, LORA) for s in (False, True))
    base = param_shapes(config)
    states = jax.eval_shape(
        lambda: States(
            {"policy": init_state(adapters(config), ADAM), "critic": init_state(critic_part(config), ADAM)}, FIXED
        )
    )
    trained = {name: state.params for name, state in states.models.items()}
    prompts, samples = PROMPTS, SAMPLES
    judge = judge_over(make_judge(policy, critic, None, rows_at_once=2, answers=1), BASES)
    learn = ppo.make_learn(
        policy, critic, ADAM, whiten_rewards=False, epochs=2, mini_batches=2, micro_batches=2, seed=0, bases=BASES
    )
    experience = jax.eval_shape(judge, trained, {"base": base}, prompts, samples, HYPER)
    experience = dataclasses.replace(experience, scores={"some": jax.ShapeDtypeStruct((4,), jnp.float32)})
    calls = {
        judge: (trained, {"base": base}, prompts, samples, HYPER),
        learn: (states, {"base": base}, experience, HYPER),
    }
    for program, arguments in calls.items():
        memory = jax.jit(program).lower(*arguments).compile().memory_analysis()
        assert nbytes(base) < memory.argument_size_in_bytes < 1.01 * nbytes(arguments)
        assert nbytes(arguments) < 1.5 * nbytes(base)  # a second base would be noticed
        assert memory.temp_size_in_bytes < 0.5 * nbytes(base)


def nbytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
