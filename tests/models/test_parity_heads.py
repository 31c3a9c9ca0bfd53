"""Reward models of transformers with torch against ours: one score a token, in every family."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrlhf.models.folder import FAMILIES
from jaxrlhf.models.load import load_scalar
from tests.models.peers import PEERS, WORDS, make_peer, save_peer

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.parity

TOKENS = np.random.default_rng(0).integers(1, WORDS, (2, 12)).astype(np.int32)
LENGTHS = np.array([12, 8])


@pytest.mark.parametrize("model_type", FAMILIES)
def test_scores_of_the_last_token_are_those_of_transformers(model_type: str, tmp_path):
    peer = make_peer(next(name for name in PEERS if name.split()[0] == model_type), scalar=True)
    assert type(peer).__name__ == FAMILIES[model_type].scalar_architecture
    tokens = np.where(np.arange(12) < LENGTHS[:, None], TOKENS, peer.config.pad_token_id)
    with torch.no_grad():
        expected = peer(torch.tensor(tokens).long()).logits[:, 0].numpy()
    loaded = load_scalar(save_peer(peer, tmp_path))
    assert loaded.config.scalar_head
    found = np.asarray(scores(loaded.model, loaded.params, jnp.asarray(TOKENS)))
    np.testing.assert_allclose(found[[0, 1], LENGTHS - 1], expected, atol=1e-4, rtol=1e-4)


@functools.partial(jax.jit, static_argnums=0)
def scores(model: Any, params: Any, tokens: jax.Array) -> jax.Array:
    places = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    hidden = model.apply(params, tokens, positions=places, segment_ids=jnp.ones_like(tokens)).hidden
    return (hidden @ model.head(params).weight.T)[:, :, 0]
