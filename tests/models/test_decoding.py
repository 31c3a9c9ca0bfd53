import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrlhf.kernels.logits import logits_of
from jaxrlhf.models.config import ComputeConfig
from jaxrlhf.models.decoder import init_params, make_model
from tests.models.tiny import TINY

TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, TINY.vocab_size, (2, 6)))
ONES = jnp.ones((2, 6), jnp.int32)


def logits(model, params):
    positions = jnp.broadcast_to(jnp.arange(6), (2, 6))
    hidden = model.apply(params, TOKENS, positions=positions, segment_ids=ONES).hidden
    return logits_of(hidden, model.head(params))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_prepared_parameters_are_the_same_model(tied: bool, dtype: str):
    config = dataclasses.replace(TINY, tie_embeddings=tied)
    model = make_model(config, ComputeConfig(dtype=dtype))
    params = init_params(config, jax.random.key(0))
    expected, found = logits(model, params), logits(model, model.prepare(params))
    np.testing.assert_allclose(found, expected, atol=1e-6 if dtype == "float32" else 2e-2)


def test_layers_have_their_own_trees_and_the_unembedding_is_turned_on_cpu():
    params = init_params(TINY, jax.random.key(0))
    prepared = make_model(TINY).prepare(params)
    assert isinstance(prepared["layers"], tuple) and len(prepared["layers"]) == TINY.num_layers
    assert "lm_head" not in prepared and "lm_head" in params
    head = make_model(TINY).head(prepared)
    assert head.layout == "dv" and head.words == TINY.vocab_size
    np.testing.assert_array_equal(head.weight.T, params["lm_head"]["kernel"])


def test_gpus_have_layers_of_their_own_and_the_unembedding_as_it_was(monkeypatch):
    monkeypatch.setattr("jaxrlhf.models.decoding.target_platform", lambda: "cuda")
    params, model = init_params(TINY, jax.random.key(0)), make_model(TINY)
    prepared = model.prepare(params)
    assert len(prepared["layers"]) == TINY.num_layers and prepared["lm_head"]["kernel"] is params["lm_head"]["kernel"]
    assert len(model.init_cache(2, 4).keys) == TINY.num_layers
    np.testing.assert_allclose(logits(model, prepared), logits(model, params), atol=1e-6)


def test_tpus_keep_stacked_layers_and_read_them_in_the_dtype_of_products(monkeypatch):
    monkeypatch.setattr("jaxrlhf.models.decoding.target_platform", lambda: "tpu")
    params = init_params(TINY, jax.random.key(0))
    model = make_model(TINY, ComputeConfig(dtype="bfloat16"))
    prepared = model.prepare(params)
    dtypes = {(path[-1].key, leaf.dtype.name) for path, leaf in jax.tree_util.tree_leaves_with_path(prepared)}
    assert dtypes == {("kernel", "bfloat16"), ("embedding", "bfloat16"), ("scale", "float32")}
    assert jax.tree.map(jnp.shape, prepared) == jax.tree.map(jnp.shape, params)
    assert model.init_cache(2, 4).keys.shape == (TINY.num_layers, 2, TINY.num_kv_heads, 4, TINY.head_dim)
