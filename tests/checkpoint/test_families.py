"""Every family out and in again: bit for bit, on one device and on eight, and as transformers reads it."""

import functools

import jax
import numpy as np
import pytest

from jaxrlhf.checkpoint.export import export_hf
from jaxrlhf.models import kept
from jaxrlhf.models.config import ModelConfig
from jaxrlhf.models.decoder import make_model, param_shapes
from jaxrlhf.models.folder import FAMILIES, read_config
from jaxrlhf.models.load import load_policy, load_scalar
from jaxrlhf.models.streaming import stream
from jaxrlhf.sharding.mesh import make_mesh
from jaxrlhf.sharding.rules import shardings_for
from tests.models.peers import BASE, PEERS, WORDS, make_peer, save_peer
from tests.models.tiny import logits

FIRST = [next(name for name in PEERS if name.split()[0] == family) for family in FAMILIES]
"""A peer of each family."""


def config_of(name: str) -> ModelConfig:
    """The config that a peer would be published with."""
    from transformers import AutoConfig

    model_type = name.split()[0]
    raw = AutoConfig.for_model(model_type, **(BASE | PEERS[name])).to_dict()
    return FAMILIES[model_type].read_config(raw, "config.json")


@pytest.mark.parametrize("name", PEERS, ids=lambda name: name.replace(" ", "-"))
def test_parameters_come_back_bit_for_bit_on_one_device_and_on_eight(tmp_path, monkeypatch, name):
    config = config_of(name)
    draw = np.random.default_rng(0).normal
    params = jax.tree.map(lambda leaf: jax.numpy.asarray(draw(size=leaf.shape), leaf.dtype), param_shapes(config))
    folder = export_hf(tmp_path / "out", params, config)
    assert read_config(folder) == config
    jax.tree.map(np.testing.assert_array_equal, load_policy(folder).params, params)

    monkeypatch.setattr(kept, "stream", functools.partial(stream, piece_bytes=8000))  # several pieces
    mesh = make_mesh(2, 2, 2)
    spread = load_policy(folder, mesh=mesh).params
    assert jax.tree.map(lambda leaf: leaf.sharding, spread) == shardings_for(params, mesh)[0]
    again = load_policy(export_hf(tmp_path / "again", spread, config))
    jax.tree.map(np.testing.assert_array_equal, again.params, params)


@pytest.mark.parity
@pytest.mark.parametrize("name", FIRST, ids=lambda name: name.split()[0])
def test_a_reward_model_of_transformers_gives_the_same_scores_and_goes_back(tmp_path, name):
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForSequenceClassification

    peer = make_peer(name, scalar=True)
    loaded = load_scalar(save_peer(peer, tmp_path / "peer"))
    assert loaded.config.scalar_head and loaded.report.initialised == ()
    back, info = AutoModelForSequenceClassification.from_pretrained(
        export_hf(tmp_path / "out", loaded.params, loaded.config), output_loading_info=True, attn_implementation="eager"
    )
    assert not any(info.values()) and back.config.num_labels == 1
    row = np.random.default_rng(0).integers(1, WORDS, (1, 11))
    scores = logits(make_model(loaded.config), loaded.params, jax.numpy.asarray(row, np.int32))[0, -1]
    with torch.no_grad():
        expected = [model(torch.tensor(row)).logits[0].numpy() for model in (peer, back)]
    assert abs(expected[0].item()) > 1e-2
    np.testing.assert_allclose(expected[1], expected[0], rtol=1e-5)
    np.testing.assert_allclose(scores, expected[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parity
@pytest.mark.parametrize("name", PEERS, ids=lambda name: name.replace(" ", "-"))
def test_transformers_loads_what_was_exported_and_agrees(tmp_path, name):
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    peer = make_peer(name)
    loaded = load_policy(save_peer(peer, tmp_path / "peer"))
    back, info = AutoModelForCausalLM.from_pretrained(
        export_hf(tmp_path / "out", loaded.params, loaded.config), output_loading_info=True, attn_implementation="eager"
    )
    assert not any(info.values())
    rows = torch.tensor(np.random.default_rng(0).integers(1, WORDS, (2, 12)))
    with torch.no_grad():
        np.testing.assert_allclose(back(rows).logits.numpy(), peer(rows).logits.numpy(), rtol=1e-5, atol=1e-5)
