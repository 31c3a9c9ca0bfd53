import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrlhf.models.config import LayerKind
from jaxrlhf.models.layers import MLP, Attention, Block, Seen
from jaxrlhf.models.linear import Products
from jaxrlhf.models.rotary import rotary_angles
from tests.models.tiny import TINY

PRODUCTS = Products(jnp.float32)
ALONE = Seen(None, jax.nn.dot_product_attention)  # of one token


def kernels(**values):
    return {name: {"kernel": jnp.asarray(value)} for name, value in values.items()}


def test_mlp_gates_with_silu():
    config = dataclasses.replace(TINY, intermediate_size=1)
    params = kernels(gate_proj=[[2.0]], up_proj=[[3.0]], down_proj=[[5.0]])
    out = MLP(config, PRODUCTS).apply({"params": params}, jnp.ones((1, 1, 1)))
    np.testing.assert_allclose(out.ravel(), [2 / (1 + np.exp(-2)) * 3 * 5], rtol=1e-6)


def test_mlp_without_a_gate_has_gelu_and_biases():
    config = dataclasses.replace(TINY, intermediate_size=1, gated_mlp=False, activation="gelu", mlp_bias=True)
    params = kernels(up_proj=[[3.0]], down_proj=[[5.0]])
    params["up_proj"]["bias"], params["down_proj"]["bias"] = jnp.asarray([-2.0]), jnp.asarray([0.5])
    out = MLP(config, PRODUCTS).apply({"params": params}, jnp.ones((1, 1, 1)))
    np.testing.assert_allclose(out.ravel(), [0.841345 * 5 + 0.5], rtol=1e-5)  # 1 times the normal distribution of 1


def test_attention_of_a_token_that_sees_nothing_is_finite():
    module = Attention(TINY, PRODUCTS)
    x = jax.random.normal(jax.random.key(0), (1, 3, 32))
    mix = functools.partial(jax.nn.dot_product_attention, mask=jnp.zeros((1, 1, 3, 3), bool))
    seen = Seen(rotary_angles(jnp.arange(3)[None], LayerKind(), 8), mix)

    @jax.jit
    def gradients(key):
        params = module.init(key, x, seen, None, 0)
        return jax.grad(lambda params: module.apply(params, x, seen, None, 0)[0].sum())(params)

    grads = gradients(jax.random.key(1))
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


def test_query_heads_share_key_value_heads_in_groups():
    module = Attention(TINY, PRODUCTS)
    x = jax.random.normal(jax.random.key(0), (1, 1, 32))
    shapes = {"q_proj": (32, 32), "k_proj": (32, 16), "v_proj": (32, 16), "o_proj": (32, 32)}
    params = kernels(**{
        name: jax.random.normal(jax.random.key(seed), shape) for seed, (name, shape) in enumerate(shapes.items())
    })  # fmt: skip
    out, _ = module.apply({"params": params}, x, ALONE, None, 0)
    values = (x @ params["v_proj"]["kernel"]).reshape(2, 8)  # one token sees itself alone: its values come out
    expected = jnp.repeat(values, 2, axis=0).reshape(1, 32) @ params["o_proj"]["kernel"]
    np.testing.assert_allclose(out[0], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("qk_norm, width", [("head", 8), ("width", 32)])
def test_queries_and_keys_are_normalised_by_head_or_as_one_vector(qk_norm, width):
    module = Attention(dataclasses.replace(TINY, qk_norm=qk_norm, norm_eps=1e-6), PRODUCTS)
    x, seen_queries = jax.random.normal(jax.random.key(0), (1, 1, 32)), []

    def mix(queries, keys, values):
        seen_queries.append(queries)
        return queries

    params = module.init(jax.random.key(1), x, Seen(None, mix), None, 0)
    module.apply(params, x, Seen(None, mix), None, 0)
    groups = seen_queries[-1].reshape(-1, width)
    np.testing.assert_allclose(jnp.mean(jnp.square(groups), axis=1), 1.0, rtol=1e-2)
    whole = jnp.mean(jnp.square(seen_queries[-1].reshape(-1, 8)), axis=1)
    assert (jnp.abs(whole - 1) < 1e-2).all() == (qk_norm == "head")


@pytest.mark.parametrize("placement", ["pre", "post", "both"])
@pytest.mark.parametrize("parallel", [False, True])
def test_a_block_normalises_and_adds_where_it_should(placement, parallel):
    """Of linear parts: attention of one token is v and o, an ungated MLP up and down with an activation that is linear
    enough where inputs are large and positive."""
    config = dataclasses.replace(
        TINY, hidden_size=2, intermediate_size=2, num_heads=1, num_kv_heads=1, head_dim=2, norm_eps=1e-12,
        norm_placement=placement, parallel_residual=parallel, gated_mlp=False, activation="gelu",
    )  # fmt: skip
    eye, x = jnp.eye(2), jnp.asarray([[[30.0, 40.0]]])
    params = {
        "self_attn": kernels(q_proj=eye, k_proj=eye, v_proj=2 * eye, o_proj=eye),
        "mlp": kernels(up_proj=10 * eye, down_proj=eye),
    }
    names = {
        "pre": ["input_layernorm", "post_attention_layernorm"],
        "post": ["post_attention_layernorm", "post_feedforward_layernorm"],
        "both": ["input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm",
                 "post_feedforward_layernorm"],
    }[placement]  # fmt: skip
    params |= {name: {"scale": jnp.full(2, 1.0 + n)} for n, name in enumerate(names)}

    def norm(x, scale):
        return scale * x / np.sqrt(np.mean(np.square(x)))

    def same(x):
        return x

    scales = {name: 1.0 + n for n, name in enumerate(names)}
    before, after, before_mlp, after_mlp = (
        functools.partial(norm, scale=scales[name]) if name in scales and used else same
        for name, used in [
            ("input_layernorm", placement != "post"),
            ("post_attention_layernorm", placement != "pre"),
            ("post_attention_layernorm" if placement == "pre" else "pre_feedforward_layernorm", placement != "post"),
            ("post_feedforward_layernorm", placement != "pre"),
        ]
    )
    stream = np.asarray([30.0, 40.0])
    mixed = stream + after(2 * before(stream))
    expected = mixed + after_mlp(10 * before_mlp(stream if parallel else mixed))
    out, _ = Block(config, PRODUCTS).apply({"params": params}, x, ALONE, None, 0)
    np.testing.assert_allclose(out.ravel(), expected, rtol=1e-4)
