import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxrlhf.checkpoint.peft import export_adapter, to_peft
from jaxrlhf.demo.tokenizer import build_tokenizer
from jaxrlhf.models.lora import init_adapters, merge
from jaxrlhf.models.lora_config import LoraConfig
from jaxrlhf.models.peft import read_adapter
from jaxrlhf.ops.trees import overlay
from tests.models.tiny import TINY, random_params

LORA = LoraConfig(rank=2, dropout=0.1)
SOME = LoraConfig(rank=2, targets=("(q|v)_proj", "down_proj"))
RSLORA = dataclasses.replace(SOME, alpha=3.0, rslora=True)
FUSED = dataclasses.replace(TINY, model_type="phi3")


def fresh():
    return init_adapters(TINY, LORA, jax.random.key(0))


def adapters(config):
    """Adapters that add something, on the host."""
    return jax.tree.map(lambda leaf: np.asarray(leaf) + 0.1, init_adapters(config, SOME, jax.random.key(0)))


def test_a_folder_holds_adapters_config_and_tokenizer(tmp_path):
    folder = export_adapter(tmp_path / "out", fresh(), TINY, LORA, base="owner/name", tokenizer=build_tokenizer())
    names = {file.name for file in folder.iterdir()}
    assert names >= {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"}
    assert "config.json" not in names  # by which it would be taken for a model
    options = json.loads((folder / "adapter_config.json").read_text())
    assert options["base_model_name_or_path"] == "owner/name" and options["lora_dropout"] == 0.1
    assert len(load_file(folder / "adapter_model.safetensors")) == 2 * 7 * 3


def test_what_is_not_finite_is_not_written(tmp_path):
    broken = fresh()
    broken["layers"]["mlp"]["up_proj"]["lora_b"] = jnp.full((3, 2, 48), jnp.nan)
    with pytest.raises(ValueError, match=r"layers.0.mlp.up_proj.lora_B.weight, .* hold NaN or infinity; nothing was"):
        export_adapter(tmp_path / "out", broken, TINY, LORA, base=None)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_exists_is_replaced_where_that_is_asked_for(tmp_path):
    export_adapter(tmp_path / "out", fresh(), TINY, LORA, base=None)
    with pytest.raises(ValueError, match="out exists; export to a new folder, or remove it first"):
        export_adapter(tmp_path / "out", fresh(), TINY, LORA, base=None)
    export_adapter(tmp_path / "out", fresh(), TINY, LORA, base=None, overwrite=True)


def test_published_names_and_options():
    tensors, options = to_peft(adapters(TINY), TINY, SOME)
    assert len(tensors) == 2 * 3 * 3
    name = "base_model.model.model.layers.2.self_attn.q_proj"
    assert tensors[f"{name}.lora_A.weight"].shape == (2, 32)
    np.testing.assert_array_equal(
        tensors[f"{name}.lora_B.weight"], adapters(TINY)["layers"]["self_attn"]["q_proj"]["lora_b"][2].T
    )
    assert options["target_modules"] == ["down_proj", "q_proj", "v_proj"]
    assert (options["r"], options["lora_alpha"], options["task_type"]) == (2, 4, "CAUSAL_LM")
    assert options["rank_pattern"] == options["alpha_pattern"] == {} and options["modules_to_save"] is None
    assert not options["fan_in_fan_out"]


@pytest.mark.parametrize("config", [TINY, FUSED], ids=["llama", "phi3"])
def test_adapters_over_others_become_one_with_them_at_any_depth(config, tmp_path):
    first, second = adapters(config), jax.tree.map(lambda leaf: 2 * leaf, adapters(config))
    third = jax.tree.map(lambda leaf: leaf - 0.3, init_adapters(config, LORA, jax.random.key(1)))
    expected = zeros = merge(overlay(random_params(config), jax.tree.map(np.zeros_like, third)), 1.0)
    folders, earlier = [], []
    for number, (own, lora) in enumerate([(first, SOME), (second, RSLORA), (third, LORA)]):
        folder = export_adapter(tmp_path / f"{number}", own, config, lora, base="x", earlier=earlier)
        expected = merge(overlay(expected, own), lora.scale)
        earlier = [read_adapter(folder, config)]
        found = merge(overlay(zeros, earlier[0]), 1.0)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5, rtol=1e-5), found, expected)
        folders.append(folder)
    options = json.loads((folders[-1] / "adapter_config.json").read_text())
    fused = config is FUSED
    assert options["r"] == options["lora_alpha"] == (14 if fused else 6) and not options["use_rslora"]
    expected = (
        {"gate_up_proj": 4, "o_proj": 2, "down_proj": 6}
        if fused
        else dict.fromkeys(("gate_proj", "up_proj", "k_proj", "o_proj"), 2)
    )
    assert options["rank_pattern"] == options["alpha_pattern"] == expected


def test_only_the_last_head_is_written():
    head = {"score": {"kernel": np.ones((1, 32), np.float32)}}
    older = {**adapters(TINY), "score": {"kernel": np.zeros((1, 32), np.float32)}}
    scalar = dataclasses.replace(TINY, scalar_head=True)
    tensors, options = to_peft({**adapters(TINY), **head}, scalar, SOME, [older])
    assert tensors["base_model.model.score.weight"].all() and options["modules_to_save"] == ["score"]
    tensors, options = to_peft(adapters(TINY), TINY, SOME, [older])
    assert "base_model.model.score.weight" not in tensors and options["task_type"] == "CAUSAL_LM"


def test_matrices_that_are_published_together_get_one_adapter_of_their_ranks():
    tensors, options = to_peft(adapters(FUSED), FUSED, SOME)
    b = tensors["base_model.model.model.layers.0.self_attn.qkv_proj.lora_B.weight"]
    assert b.shape == (32 + 16 + 16, 4)
    assert not b[:32, 2:].any() and not b[32:48].any() and not b[48:, :2].any()
    assert b[:32, :2].all() and b[48:, 2:].all()
    assert options["target_modules"] == ["down_proj", "qkv_proj"]
    assert options["rank_pattern"] == {"qkv_proj": 4} and options["alpha_pattern"] == {"qkv_proj": 8}
