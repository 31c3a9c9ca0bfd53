import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxrlhf.models.layers import MLP, Attention, RMSNorm
from jaxrlhf.models.rotary import rotary_angles
from tests.models.tiny import TINY


def test_rms_norm_of_worked_numbers():
    params = {"scale": jnp.asarray([1.0, 2.0])}
    normed = RMSNorm(0.5, jnp.float32).apply({"params": params}, jnp.asarray([[[3.0, 4.0]]]))
    np.testing.assert_allclose(normed.ravel(), [3 / np.sqrt(13), 8 / np.sqrt(13)], rtol=1e-6)  # 12.5 + 0.5


def test_rms_norm_sums_in_float32():
    x = jnp.full((1, 1, 4096), 0.1, jnp.bfloat16)  # a bfloat16 sum of squares would stall long before 4096 terms
    normed = RMSNorm(1e-6, jnp.bfloat16).apply({"params": {"scale": jnp.ones(4096)}}, x)
    assert normed.dtype == jnp.bfloat16
    np.testing.assert_array_equal(normed.astype(jnp.float32), 1.0)


def test_mlp_gates_with_silu():
    params = {name: {"kernel": jnp.full((1, 1), value)} for name, value in
              [("gate_proj", 2.0), ("up_proj", 3.0), ("down_proj", 5.0)]}  # fmt: skip
    out = MLP(1, jnp.float32).apply({"params": params}, jnp.ones((1, 1, 1)))
    np.testing.assert_allclose(out.ravel(), [2 / (1 + np.exp(-2)) * 3 * 5], rtol=1e-6)


def test_attention_of_a_token_that_sees_nothing_is_finite():
    module = Attention(TINY, jnp.float32)
    x = jax.random.normal(jax.random.key(0), (1, 3, 32))
    rotary = rotary_angles(jnp.arange(3)[None], TINY)
    mix = functools.partial(jax.nn.dot_product_attention, mask=jnp.zeros((1, 1, 3, 3), bool))

    @jax.jit
    def gradients(key):
        params = module.init(key, x, rotary, mix, None, 0)
        return jax.grad(lambda params: module.apply(params, x, rotary, mix, None, 0)[0].sum())(params)

    grads = gradients(jax.random.key(1))
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


def test_query_heads_share_key_value_heads_in_groups():
    module = Attention(TINY, jnp.float32)
    x = jax.random.normal(jax.random.key(0), (1, 1, 32))
    rotary = rotary_angles(jnp.zeros((1, 1), jnp.int32), TINY)
    params = {name: {"kernel": jax.random.normal(key, shape)} for name, key, shape in [
        ("q_proj", jax.random.key(1), (32, 32)), ("k_proj", jax.random.key(2), (32, 16)),
        ("v_proj", jax.random.key(3), (32, 16)), ("o_proj", jax.random.key(4), (32, 32)),
    ]}  # fmt: skip
    out, _ = module.apply({"params": params}, x, rotary, jax.nn.dot_product_attention, None, 0)
    values = (x @ params["v_proj"]["kernel"]).reshape(2, 8)  # one token sees itself alone: its values come out
    expected = jnp.repeat(values, 2, axis=0).reshape(1, 32) @ params["o_proj"]["kernel"]
    np.testing.assert_allclose(out[0], expected, rtol=1e-5, atol=1e-5)
