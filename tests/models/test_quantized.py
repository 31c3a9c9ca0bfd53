import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrlhf.models.decoder import make_model
from jaxrlhf.models.quantized import as_float32, dequantize, keep_as, quantize
from jaxrlhf.sharding.mesh import make_mesh
from jaxrlhf.sharding.rules import shardings_for
from tests.models.tiny import SCALAR, TINY, logits, random_params, random_tokens

MODEL = make_model(TINY)


def test_each_column_has_a_scale_of_its_own():
    kernel = np.asarray([[127.0, 0.0, -0.254], [-63.4, 0.0, 0.001]])
    quantized, scale = quantize(kernel)
    np.testing.assert_array_equal(quantized, [[127, 0, -127], [-63, 0, 0]])  # 0.001 is half a step, to even
    np.testing.assert_allclose(scale, [1.0, 1.0, 0.002], rtol=1e-6)
    assert (quantized.dtype, scale.dtype) == (jnp.int8, jnp.float32)


def test_rounding_is_half_a_scale_at_most():
    kernel = jax.random.normal(jax.random.key(0), (3, 64, 16))
    quantized, scale = jax.jit(quantize)(kernel)
    error = jnp.abs(dequantize(quantized, scale) - kernel) / scale[:, None, :]
    assert 0.49 < error.max() < 0.5001


def test_matrices_of_blocks_are_kept_in_8_bits_and_the_rest_in_16():
    kept = keep_as(random_params(TINY), "int8")
    matrix = kept["layers"]["mlp"]["up_proj"]
    assert matrix["kernel"].dtype == jnp.int8 and matrix["kernel_scale"].shape == (3, 48)
    others = jax.tree.leaves({name: leaf for name, leaf in kept.items() if name != "layers"})
    assert {leaf.dtype for leaf in [*others, kept["layers"]["input_layernorm"]["scale"]]} == {jnp.dtype("bfloat16")}
    params = random_params(TINY)
    assert jax.tree.structure(as_float32(kept)) == jax.tree.structure(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0.01, atol=0.003), as_float32(kept), params)


def test_logits_are_those_of_float32_within_rounding():
    params, tokens = random_params(TINY), random_tokens(2, 9)
    exact = logits(MODEL, params, tokens)
    assert jnp.std(exact) > 0.3
    for dtype, most in (("bfloat16", 0.02), ("int8", 0.1)):
        kept = keep_as(params, dtype)
        found = logits(MODEL, kept, tokens)
        assert 0 < jnp.abs(found - exact).max() < most
        # What is computed is what is kept, without further rounding.
        np.testing.assert_allclose(found, logits(MODEL, as_float32(kept), tokens), atol=1e-5)


def test_eight_devices_compute_what_one_does():
    kept, tokens = keep_as(random_params(TINY), "int8"), random_tokens(4, 9)
    shardings, _ = shardings_for(kept, make_mesh(data=2, fsdp=2, tensor=2))
    spread = jax.device_put(kept, shardings)
    assert not spread["layers"]["mlp"]["up_proj"]["kernel"].is_fully_replicated
    np.testing.assert_allclose(logits(MODEL, spread, tokens), logits(MODEL, kept, tokens), atol=1e-5)


@pytest.mark.parametrize("first", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("then", ["float32", "bfloat16", "int8"])
def test_the_form_is_that_which_is_asked_for_whatever_it_was(first, then):
    params = random_params(SCALAR)
    kept = keep_as(keep_as(params, first), then)
    like = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), keep_as(params, then))
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), kept) == like
    assert kept["score"]["kernel"].dtype == jnp.float32
    if first == then:
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a.astype(jnp.float32), b.astype(jnp.float32), rtol=1e-6),
            kept, keep_as(params, then),
        )  # fmt: skip
