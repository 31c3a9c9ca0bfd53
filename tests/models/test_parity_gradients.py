"""Gradients of log-probabilities against autograd of torch, on tiny random models of unlike families."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrlhf.models.load import load_policy
from jaxrlhf.models.tensors import flatten, tensor_entries
from jaxrlhf.steps.scoring import token_logprobs
from jaxrlhf.types import TokenBatch
from tests.models.peers import WORDS, make_peer, save_peer
from tests.models.tiny import positions_of

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.parity

SEGMENTS = np.array([[1] * 16, [0] * 5 + [1] * 11, [1] * 12 + [0] * 4], np.int32)
TOKENS, TARGETS = np.random.default_rng(0).integers(1, WORDS, (2, *SEGMENTS.shape)).astype(np.int32)
WEIGHTS = np.random.default_rng(1).normal(size=SEGMENTS.shape).astype(np.float32)  # so that nothing cancels


@pytest.mark.parametrize("name", ["gemma2", "gpt_neox", "qwen3 with biases and windows"])
def test_gradients_of_log_probabilities_are_those_of_torch(name: str, tmp_path):
    peer = make_peer(name)
    loaded = load_policy(save_peer(peer, tmp_path))
    expected = peer_gradients(peer)
    found = jax.jit(jax.grad(lambda params: weighted(loaded.model, params)))(loaded.params)
    flat = {path: np.asarray(leaf) for path, leaf in flatten(found).items()}
    compared = 0
    for entry in tensor_entries(loaded.config):
        ours = entry.join([flat[path] if entry.layer is None else flat[path][entry.layer] for path in entry.paths])
        theirs = expected.pop(entry.name.replace("embed_out", "lm_head"))
        assert np.linalg.norm(ours - theirs) < 1e-3 * np.linalg.norm(theirs), entry.name
        compared += 1
    assert compared > 10 and not expected  # every tensor of either


def weighted(model: Any, params: Any) -> jax.Array:
    batch = TokenBatch(
        tokens=jnp.asarray(TOKENS),
        targets=jnp.asarray(TARGETS),
        mask=jnp.asarray(SEGMENTS > 0),
        positions=positions_of(SEGMENTS),
        segment_ids=jnp.asarray(SEGMENTS),
    )
    return jnp.sum(token_logprobs(model, params, batch)[0].logp * WEIGHTS)


def peer_gradients(peer: Any) -> dict[str, np.ndarray]:
    mask = torch.tensor(SEGMENTS).long()
    places = torch.clamp(torch.cumsum(mask, dim=1) - 1, min=0)
    logits = peer(torch.tensor(TOKENS).long(), attention_mask=mask, position_ids=places).logits
    logp = torch.log_softmax(logits, dim=-1).gather(-1, torch.tensor(TARGETS).long()[:, :, None])[:, :, 0]
    (logp * torch.tensor(WEIGHTS) * mask).sum().backward()
    return {name: tensor.grad.numpy() for name, tensor in peer.named_parameters()}
