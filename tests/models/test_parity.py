"""The decoder against transformers with torch, on tiny random models of every family."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrlhf.generation.prompts import pad_prompts
from jaxrlhf.generation.sampler import Sampler
from jaxrlhf.generation.settings import SamplingSettings
from jaxrlhf.kernels.logits import logits_of
from jaxrlhf.models.folder import FAMILIES
from jaxrlhf.models.load import Loaded, load_policy
from tests.models.peers import PEERS, WORDS, make_peer, peer_logits, save_peer
from tests.models.tiny import positions_of

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.parity

COLUMNS = 24
SEGMENTS = np.ones((4, COLUMNS), np.int32)
SEGMENTS[1, :7] = 0  # padded on the left
SEGMENTS[2, 15:] = 0  # padded on the right
SEGMENTS[3] = [1] * 13 + [2] * 9 + [0] * 2  # packed
TOKENS = np.random.default_rng(0).integers(1, WORDS, SEGMENTS.shape).astype(np.int32)


class Pair(NamedTuple):
    """A random torch model, and the same one loaded from the folder that it was saved to."""

    peer: Any
    loaded: Loaded


@pytest.fixture(scope="module", params=PEERS, ids=lambda name: name.replace(" ", "-"))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    peer = make_peer(request.param)
    return Pair(peer, load_policy(save_peer(peer, tmp_path_factory.mktemp("peer"))))


@functools.partial(jax.jit, static_argnums=0)
def logits(model: Any, params: Any, tokens: jax.Array, positions: jax.Array, segment_ids: jax.Array) -> jax.Array:
    hidden = model.apply(params, tokens, positions=positions, segment_ids=segment_ids).hidden
    return logits_of(hidden, model.head(params))


def test_logits_equal_those_of_transformers_under_padding_and_packing(pair: Pair):
    model, params = pair.loaded.model, pair.loaded.params
    found = logits(model, params, jnp.asarray(TOKENS), positions_of(SEGMENTS), jnp.asarray(SEGMENTS))
    expected = peer_logits(pair.peer, TOKENS, SEGMENTS)
    assert np.abs(expected).max() > 1  # far from where all words are alike
    np.testing.assert_allclose(np.where(SEGMENTS[:, :, None] > 0, found, 0), expected, atol=5e-5, rtol=0)


def test_greedy_answers_are_those_of_transformers(pair: Pair):
    prompts = pad_prompts([TOKENS[0, :9].tolist(), TOKENS[1, :6].tolist()])
    answers = pair.peer.generate(
        torch.tensor(prompts.tokens).long(),
        attention_mask=torch.tensor(prompts.segment_ids).long(),
        do_sample=False,
        min_new_tokens=32,
        max_new_tokens=32,
        pad_token_id=0,
    )
    samples = Sampler(pair.loaded.model, max_new_tokens=32)(
        pair.loaded.params, prompts, jax.random.key(0), SamplingSettings(temperature=0.0)
    )
    np.testing.assert_array_equal(samples.tokens, answers[:, prompts.tokens.shape[1] :].numpy())


def test_every_family_has_two_peers():
    names = [name.split()[0] for name in PEERS]
    assert {name: min(2, names.count(name)) for name in FAMILIES} == dict.fromkeys(FAMILIES, 2)
