"""Adapters against PEFT with torch: it loads what is written here, and what it writes is loaded here."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from transformers import AutoModelForSequenceClassification

from jaxrlhf.checkpoint.card import Card, render_card
from jaxrlhf.checkpoint.peft import export_adapter
from jaxrlhf.demo.tokenizer import build_tokenizer
from jaxrlhf.kernels.logits import logits_of
from jaxrlhf.models.decoder import make_model
from jaxrlhf.models.load import load_policy, load_scalar
from jaxrlhf.models.lora import init_adapters
from jaxrlhf.models.lora_config import LoraConfig
from jaxrlhf.ops.trees import overlay
from tests.models.peers import WORDS, make_peer, peer_logits, save_peer
from tests.models.tiny import positions_of

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
# PEFT warns of functions of its own and of transformers.
pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")]

SEGMENTS = np.ones((2, 11), np.int32)
SEGMENTS[1, 7:] = 0
TOKENS = np.random.default_rng(0).integers(1, WORDS, SEGMENTS.shape).astype(np.int32)

# One module for one of our matrices; for three that are published together, also where only two of them have adapters,
# or where another module's name ends alike; for three that alternate head by head; for gate and up together.
WRITTEN = {
    "llama": LoraConfig(rank=4, alpha=6.0, targets=("q_proj", "self_attn/o_proj", "mlp/.*")),
    "gpt2": LoraConfig(rank=4, rslora=True, targets=("(q|v)_proj", "o_proj")),
    "gpt_neox": LoraConfig(rank=2, rslora=True),
    "phi3": LoraConfig(rank=2, targets=("self_attn/.*", "up_proj")),
}
READ: dict[str, dict[str, Any]] = {
    "llama": {"target_modules": ["q_proj", "down_proj"], "rank_pattern": {"layers.1.self_attn.q_proj": 5}},
    "gpt2": {"target_modules": ["c_attn", "mlp.c_proj"], "alpha_pattern": {"attn.c_attn": 5}, "fan_in_fan_out": True},
    "gpt_neox": {"target_modules": "all-linear", "use_rslora": True},
    "phi3": {"target_modules": ["qkv_proj", "gate_up_proj"], "layers_to_transform": [1]},
}


@functools.partial(jax.jit, static_argnums=0)
def logits(model: Any, params: Any) -> jax.Array:
    segments = jnp.asarray(SEGMENTS)
    hidden = model.apply(params, jnp.asarray(TOKENS), positions=positions_of(SEGMENTS), segment_ids=segments).hidden
    return jnp.where(segments[:, :, None] > 0, logits_of(hidden, model.head(params)), 0.0)


def trained(adapters: Any) -> Any:
    """Adapters that add something, B among them."""
    leaves, tree = jax.tree.flatten(adapters)
    rng = np.random.default_rng(1)
    return tree.unflatten([leaf + 0.3 * rng.standard_normal(leaf.shape).astype(np.float32) for leaf in leaves])


@pytest.mark.parametrize("name", WRITTEN)
def test_peft_loads_what_is_written_and_says_the_same(name, tmp_path):
    lora = WRITTEN[name]
    base = save_peer(make_peer(name), tmp_path / "base")
    loaded = load_policy(base)
    adapters = trained(init_adapters(loaded.config, lora, jax.random.key(0)))
    export_adapter(tmp_path / "adapter", adapters, loaded.config, lora, base=str(base))
    found = logits(make_model(loaded.config, None, lora), overlay(loaded.params, adapters))
    peer = peft.PeftModel.from_pretrained(make_peer(name), tmp_path / "adapter").eval()
    assert np.abs(found - logits(loaded.model, loaded.params)).max() > 0.5
    np.testing.assert_allclose(found, peer_logits(peer, TOKENS, SEGMENTS), atol=1e-4, rtol=1e-4)
    again = load_policy(tmp_path / "adapter")
    np.testing.assert_allclose(logits(again.model, again.params), found, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("name", WRITTEN)
def test_peft_loads_adapters_over_adapters_and_says_the_same(name, tmp_path):
    base = save_peer(make_peer(name), tmp_path / "base")
    first, second = WRITTEN[name], LoraConfig(rank=3, alpha=2.0)
    config = load_policy(base).config
    export_adapter(
        tmp_path / "first", trained(init_adapters(config, first, jax.random.key(0))), config, first, base=str(base)
    )
    loaded = load_policy(tmp_path / "first")
    own = trained(init_adapters(config, second, jax.random.key(1)))
    export_adapter(tmp_path / "second", own, config, second, base=str(base), earlier=loaded.adapters)
    found = logits(make_model(config, None, second), overlay(loaded.params, own))
    peer = peft.PeftModel.from_pretrained(make_peer(name), tmp_path / "second").eval()
    assert np.abs(found - logits(loaded.model, loaded.params)).max() > 0.5
    np.testing.assert_allclose(found, peer_logits(peer, TOKENS, SEGMENTS), atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("name", READ)
def test_what_peft_writes_is_merged_where_it_is_loaded(name, tmp_path):
    peer = make_peer(name)
    base = save_peer(peer, tmp_path / "base")
    options = peft.LoraConfig(r=3, lora_alpha=7, task_type="CAUSAL_LM", init_lora_weights=False, **READ[name])
    torch.manual_seed(0)
    adapted = peft.get_peft_model(peer, options).eval()
    adapted.peft_config["default"].base_model_name_or_path = str(base)
    adapted.save_pretrained(tmp_path / "adapter")
    loaded = load_policy(tmp_path / "adapter")
    expected = peer_logits(adapted, TOKENS, SEGMENTS)
    assert np.abs(expected - logits(loaded.model, load_policy(base).params)).max() > 0.1
    np.testing.assert_allclose(logits(loaded.model, loaded.params), expected, atol=1e-4, rtol=1e-4)


def test_reward_models_keep_their_head_in_both_directions(tmp_path):
    base = save_peer(make_peer("llama"), tmp_path / "base")
    options = peft.LoraConfig(r=3, task_type="SEQ_CLS", init_lora_weights=False, target_modules=["v_proj"])
    adapted = peft.get_peft_model(make_peer("llama", scalar=True), options)
    adapted.peft_config["default"].base_model_name_or_path = str(base)
    adapted.save_pretrained(tmp_path / "theirs")
    theirs = load_scalar(tmp_path / "theirs")
    head = adapted.base_model.model.score.modules_to_save["default"].weight.detach().numpy()
    np.testing.assert_array_equal(theirs.params["score"]["kernel"], head)
    assert theirs.report.initialised == ()

    lora = LoraConfig(rank=2)
    ours = {**trained(init_adapters(theirs.config, lora, jax.random.key(0))), "score": {"kernel": jnp.ones((1, 32))}}
    export_adapter(tmp_path / "ours", ours, theirs.config, lora, base=str(base))
    trunk = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    peer = peft.PeftModel.from_pretrained(trunk, tmp_path / "ours").eval()
    tokens, mask = torch.tensor(TOKENS * SEGMENTS).long(), torch.tensor(SEGMENTS).long()
    with torch.no_grad():
        scores = peer(tokens, attention_mask=mask).logits.numpy()
    model, params = make_model(theirs.config, None, lora), overlay(load_scalar(base).params, ours)
    last = (np.arange(2), [10, 6])
    np.testing.assert_allclose(np.asarray(logits(model, params))[last], scores, atol=1e-4, rtol=1e-4)


def test_a_reward_model_over_a_policy_loads_by_the_code_of_its_card(tmp_path, monkeypatch):
    base = save_peer(make_peer("llama"), tmp_path / "base")
    scalar, lora = dataclasses.replace(load_policy(base).config, scalar_head=True), LoraConfig(rank=2)
    policy = trained(init_adapters(scalar, lora, jax.random.key(0)))
    export_adapter(tmp_path / "policy", policy, scalar, lora, base=str(base))
    trunk = load_scalar(tmp_path / "policy")
    own = {**trained(init_adapters(scalar, lora, jax.random.key(1))), "score": {"kernel": jnp.ones((1, 32))}}
    folder = export_adapter(
        tmp_path / "FOLDER", own, scalar, lora, base=str(base), earlier=trunk.adapters, tokenizer=build_tokenizer()
    )
    card = Card(method="reward", base="", scorer=True, data=(), rows=1, steps=1, metrics={}, settings={}, version="0")
    code = render_card(card, adapters=True).partition("```python\n")[2].partition("```")[0]
    monkeypatch.chdir(folder.parent)
    found: dict[str, Any] = {}
    exec(code, found)
    tokens = TOKENS[:1] + 1  # without padding, whose number is of the tokenizer
    with torch.no_grad():
        score = found["model"].eval()(torch.tensor(tokens).long()).logits.numpy()
    model, params = make_model(scalar, None, lora), overlay(trunk.params, own)
    segments = jnp.ones((1, 11), jnp.int32)
    hidden = model.apply(params, jnp.asarray(tokens), positions=positions_of(segments), segment_ids=segments).hidden
    np.testing.assert_allclose(logits_of(hidden, model.head(params))[:, -1], score, atol=1e-4, rtol=1e-4)
