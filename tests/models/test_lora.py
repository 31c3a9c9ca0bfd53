import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrlhf.models.decoder import make_model
from jaxrlhf.models.lora import check_targets, init_adapters, merge, target_shapes, trained_share
from jaxrlhf.models.lora_config import LoraConfig
from jaxrlhf.models.quantized import keep_as
from jaxrlhf.ops.trees import overlay
from jaxrlhf.sharding.mesh import make_mesh
from jaxrlhf.sharding.rules import shardings_for
from tests.models.tiny import TINY, logits, random_params, random_tokens

LORA = LoraConfig(rank=4)
TOKENS = random_tokens(4, 9)
PLAIN, ADAPTED = make_model(TINY), make_model(TINY, None, LORA)


def adapters(seed: int = 0, lora: LoraConfig = LORA):
    """Adapters that add something."""
    fresh = init_adapters(TINY, lora, jax.random.key(seed))
    return jax.tree.map(lambda leaf: leaf + 0.2 * jax.random.normal(jax.random.key(seed), leaf.shape), fresh)


def test_fresh_adapters_add_nothing_to_the_last_bit():
    params = random_params(TINY)
    fresh = init_adapters(TINY, LORA, jax.random.key(0))
    found = logits(ADAPTED, overlay(params, fresh), TOKENS)
    np.testing.assert_array_equal(found, logits(PLAIN, params, TOKENS))
    assert jnp.abs(found - logits(ADAPTED, overlay(params, adapters()), TOKENS)).max() > 1


def test_a_is_uniform_within_the_root_of_its_inputs_and_b_is_zero():
    pair = init_adapters(TINY, LoraConfig(rank=64), jax.random.key(0))["layers"]["mlp"]["down_proj"]
    assert pair["lora_a"].shape == (3, 48, 64) and pair["lora_b"].shape == (3, 64, 32)
    bound = 48**-0.5
    assert 0.99 * bound < jnp.abs(pair["lora_a"]).max() <= bound
    np.testing.assert_allclose(jnp.std(pair["lora_a"]), bound / 3**0.5, rtol=0.02)
    assert not pair["lora_b"].any()


@pytest.mark.parametrize("base", ["float32", "bfloat16", "int8"])
def test_merged_adapters_compute_the_same(base):
    params = overlay(keep_as(random_params(TINY), base), adapters())
    merged = jax.jit(merge, static_argnums=1)(params, LORA.scale)
    assert jax.tree.structure(merged) == jax.tree.structure(random_params(TINY))
    assert {leaf.dtype for leaf in jax.tree.leaves(merged)} == {jnp.dtype("float32")}
    np.testing.assert_allclose(logits(PLAIN, merged, TOKENS), logits(ADAPTED, params, TOKENS), atol=1e-5)


def test_the_scale_is_that_of_the_config():
    lora = LoraConfig(rank=4, alpha=2.0, rslora=True)
    params = overlay(random_params(TINY), adapters())
    found, expected = logits(make_model(TINY, None, lora), params, TOKENS), merge(params, 1.0)
    np.testing.assert_allclose(found, logits(PLAIN, expected, TOKENS), atol=1e-5)


def test_several_adapters_stand_over_one_base():
    base = random_params(TINY)
    one, other = (overlay(base, adapters(seed)) for seed in (0, 1))
    kernels = [params["layers"]["mlp"]["up_proj"]["kernel"] for params in (base, one, other)]
    assert kernels[0] is kernels[1] is kernels[2]
    assert jnp.abs(logits(ADAPTED, one, TOKENS) - logits(ADAPTED, other, TOKENS)).max() > 1


def test_eight_devices_compute_what_one_does():
    params = overlay(keep_as(random_params(TINY), "int8"), adapters())
    shardings, _ = shardings_for(params, make_mesh(data=2, fsdp=2, tensor=2))
    spread = jax.device_put(params, shardings)
    assert not spread["layers"]["mlp"]["up_proj"]["lora_b"].is_fully_replicated
    np.testing.assert_allclose(logits(ADAPTED, spread, TOKENS), logits(ADAPTED, params, TOKENS), atol=1e-5)


def test_dropout_needs_a_key_and_is_a_function_of_it():
    model = make_model(TINY, None, dataclasses.replace(LORA, dropout=0.5))
    params = overlay(random_params(TINY), adapters())
    positions, segments = jnp.broadcast_to(jnp.arange(9), (4, 9)), jnp.ones((4, 9), jnp.int32)

    @jax.jit
    def hidden(key=None):
        return model.apply(params, TOKENS, positions=positions, segment_ids=segments, key=key).hidden

    expected = ADAPTED.apply(params, TOKENS, positions=positions, segment_ids=segments).hidden
    np.testing.assert_allclose(hidden(), expected, atol=1e-5)
    assert jnp.abs(hidden(jax.random.key(0)) - expected).max() > 0.1
    assert jnp.abs(hidden(jax.random.key(0)) - hidden(jax.random.key(1))).max() > 0.1
    np.testing.assert_array_equal(hidden(jax.random.key(0)), hidden(jax.random.key(0)))


def test_targets_are_patterns_for_ends_of_paths():
    def found(*targets):
        return [path.removeprefix("layers/") for path in target_shapes(TINY, LoraConfig(rank=4, targets=targets))]

    assert found("q_proj") == ["self_attn/q_proj"]
    assert found("(q|v)_proj", "mlp/.*") == [
        "mlp/down_proj", "mlp/gate_proj", "mlp/up_proj", "self_attn/q_proj", "self_attn/v_proj",
    ]  # fmt: skip
    assert len(found(".*_proj")) == 7
    ungated = dataclasses.replace(TINY, gated_mlp=False)
    assert len(target_shapes(ungated, LORA)) == 6


def test_targets_that_match_nothing_are_named_beside_what_there_is():
    with pytest.raises(ValueError, match=r"lora.targets: qproj, proj matches none of .*layers/self_attn/q_proj"):
        init_adapters(TINY, LoraConfig(rank=4, targets=("q_proj", "qproj", "proj")), jax.random.key(0))


@pytest.mark.parametrize(
    ("family", "target", "hint"),
    [
        ("gpt2", "c_attn", "c_attn is self_attn/q_proj, self_attn/k_proj, self_attn/v_proj here"),
        ("gpt2", "c_proj", "c_proj is self_attn/o_proj, mlp/down_proj here"),
        ("gpt_neox", "attention.dense", "attention.dense is self_attn/o_proj here"),
        ("phi3", "gate_up_proj", "gate_up_proj is mlp/gate_proj, mlp/up_proj here"),
        ("llama", "lm_head", "lm_head cannot have adapters, only matrices of the blocks can"),
        ("llama", "embed_tokens", "embed_tokens cannot have adapters, only"),
        ("gpt2", "wte", "wte cannot have adapters, only"),
    ],
)
def test_published_names_as_targets_are_told_what_they_are_here(family, target, hint):
    config = dataclasses.replace(TINY, model_type=family, tie_embeddings=True)
    with pytest.raises(ValueError, match=f"{target} matches none of .*; {hint}"):
        check_targets(config, LoraConfig(rank=4, targets=(target,)))


def test_the_trained_share_counts_parameters_and_not_scales():
    base, fresh = random_params(TINY), init_adapters(TINY, LoraConfig(rank=1, targets=("q_proj",)), jax.random.key(0))
    line = "trains 192 of 27,552 parameters (0.70%)"
    assert trained_share(fresh, overlay(base, fresh)) == line
    assert trained_share(fresh, overlay(keep_as(base, "int8"), fresh)) == line
