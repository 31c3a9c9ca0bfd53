"""What each family reads, refuses and writes that others do not; `known.py` has their published configs."""

import dataclasses
import json

import pytest

from jaxrlhf.models.config import LayerKind, LinearScaling
from jaxrlhf.models.folder import FAMILIES, read_config
from tests.models.families.known import KNOWN
from tests.models.families.test_known import read

FULL, SLIDING = "full_attention", "sliding_attention"
LINEAR = {"rope_type": "linear", "factor": 8.0}
TALL = LayerKind(rope_theta=1e6)
TALL_STRETCHED = LayerKind(rope_theta=1e6, rope_scaling=LinearScaling(factor=8.0))


@pytest.mark.parametrize(("name", "changes", "fields"), [
    ("Llama-3.2-1B", {"attention_bias": True}, {"qkv_bias": True, "out_bias": True}),
    ("Llama-3.2-1B", {"mlp_bias": True}, {"mlp_bias": True}),
    ("Mistral-7B-v0.1", {"sliding_window": None}, {"pattern": (LayerKind(),)}),  # version 0.3
    ("Mistral-7B-v0.1", {"head_dim": 64}, {"head_dim": 64}),  # NeMo
    ("Qwen3-0.6B", {"attention_bias": True}, {"qkv_bias": True, "out_bias": True}),
    ("gemma-2-2b", {"attn_logit_softcapping": None, "final_logit_softcapping": None},
     {"attention_softcap": None, "final_softcap": None}),
    ("gemma-2-2b", {"query_pre_attn_scalar": 144}, {"query_scale": 1 / 12}),
    ("gemma-2-2b", {"query_pre_attn_scalar": 12.5}, {"query_scale": 12.5**-0.5}),
    ("gemma-2-2b", {"layer_types": [FULL] * 26}, {"pattern": (LayerKind(),)}),
    ("gemma-3-1b", {"layer_types": [SLIDING] * 26, "rope_local_base_freq": 5},
     {"pattern": (LayerKind(window=512, rope_theta=5.0),)}),
    ("gpt2", {"n_inner": 100}, {"intermediate_size": 100}),
    ("gpt2", {"tie_word_embeddings": False}, {"tie_embeddings": False}),
    ("pythia-160m", {"head_dim": 88, "rotary_pct": 0.35}, {"head_dim": 88, "rotary_dim": 30}),
    ("pythia-160m", {"use_parallel_residual": False}, {"parallel_residual": False}),
    ("pythia-160m", {"rotary_pct": 1.0, "rotary_emb_base": 1e6}, {"rotary_dim": None, "pattern": (TALL,)}),
    ("pythia-160m", {"attention_bias": False}, {"qkv_bias": False, "out_bias": False}),
    ("pythia-160m", {"hidden_act": "gelu_fast"}, {"activation": "gelu_tanh"}),  # GPT-NeoX-20B
    ("Phi-3-mini-4k", {"partial_rotary_factor": 0.75}, {"rotary_dim": 72}),
    ("Phi-3-mini-4k", {"head_dim": 88, "partial_rotary_factor": 0.35}, {"head_dim": 88, "rotary_dim": 30}),
    ("Phi-3-mini-4k", {"sliding_window": None}, {"pattern": (LayerKind(),)}),
    ("OLMo-2-1B", {"attention_bias": True}, {"qkv_bias": True, "out_bias": True}),
])  # fmt: skip
def test_options_of_a_family_become_fields_and_are_written_again(name, changes, fields):
    config = read(name, **changes)
    assert config == dataclasses.replace(read(name), **fields)
    family = FAMILIES[config.model_type]
    assert family.read_config(family.write_config(config), "config.json") == config


@pytest.mark.parametrize("name", ["Qwen2.5-0.5B", "Qwen3-0.6B"])
@pytest.mark.parametrize(("changes", "windows"), [
    ({"use_sliding_window": True, "max_window_layers": 20}, [None] * 20 + [8] * 4),
    ({"use_sliding_window": True, "max_window_layers": 0}, [8] * 24),
    ({"use_sliding_window": True, "max_window_layers": 28}, [None] * 24),
    ({"use_sliding_window": True, "layer_types": [SLIDING, FULL] * 12}, [8, None] * 12),
    ({"use_sliding_window": False, "max_window_layers": 0}, [None] * 24),
])  # fmt: skip
def test_qwen_has_windows_in_the_layers_that_the_file_says(name, changes, windows):
    config = read(name, num_hidden_layers=24, sliding_window=8, **changes)
    assert [config.kind(layer).window for layer in range(24)] == windows
    family = FAMILIES[config.model_type]
    assert family.read_config(family.write_config(config), "config.json") == config


@pytest.mark.parametrize(("changes", "long"), [
    ({}, TALL),
    ({"rope_scaling": LINEAR}, TALL_STRETCHED),  # the larger ones
    ({"rope_theta": 1.0, "rope_parameters": {FULL: {"rope_theta": 1e6} | LINEAR, SLIDING: {}}}, TALL_STRETCHED),
])  # fmt: skip
def test_gemma_3_has_rotary_options_for_each_type_of_layer(changes, long):
    config = read("gemma-3-1b", **changes)
    assert config.pattern == (*[LayerKind(window=512)] * 5, long)
    assert FAMILIES["gemma3_text"].read_config(FAMILIES["gemma3_text"].write_config(config), "") == config


def test_a_gpt_neox_config_of_transformers_5_reads_like_an_older_one():
    old = ("rotary_pct", "rotary_emb_base")
    raw = {key: value for key, value in KNOWN["pythia-160m"].items() if key not in old}
    rope = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25}
    assert FAMILIES["gpt_neox"].read_config(raw | {"rope_parameters": rope}, "") == read("pythia-160m")
    assert FAMILIES["gpt_neox"].read_config(raw, "") == read("pythia-160m")


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("Llama-3.2-1B", {"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5 is not supported; only 1.0 is"),
        ("Mistral-7B-v0.1", {"layer_types": [FULL] * 32}, "layer_types=.* is not supported; only None is"),
        ("Qwen2.5-0.5B", {"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope_type='yarn' is not supported"),
        ("Qwen2.5-0.5B", {"layer_types": [SLIDING] * 24}, "names 'sliding_attention', and there is no sliding_window"),
        ("gemma-2-2b", {"use_bidirectional_attention": True}, "use_bidirectional_attention=True is not supported"),
        ("gemma-2-2b", {"sliding_window": None}, "names 'sliding_attention', and there is no sliding_window"),
        ("gemma-2-2b", {"query_pre_attn_scalar": 0}, "query_pre_attn_scalar=0 must be a positive number"),
        ("gemma-3-1b", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping=50.0 is not supported; only None is"),
        ("gemma-3-1b", {"rope_parameters": {"rope_theta": 1e6}}, "rope_parameters=.* must be an object of 'full_att"),
        ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights=False is not supported; only True is"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True is not supported"),
        ("gpt2", {"reorder_and_upcast_attn": True}, "reorder_and_upcast_attn=True is not supported"),
        ("gpt2", {"add_cross_attention": True}, "add_cross_attention=True is not supported"),
        ("gpt2", {"n_inner": 10.5}, "n_inner=10.5 must be a whole number"),
        ("pythia-160m", {"rope_theta": 5.0}, "rope_theta=5.0 and rotary_emb_base=10000 must be equal"),
        ("pythia-160m", {"rotary_pct": 0.05}, "3 entries of a head cannot turn in pairs"),
        ("Phi-3-mini-4k", {"rope_scaling": {"type": "longrope"}}, "rope_type='longrope' is not supported"),
        ("Phi-3-mini-4k", {"rope_scaling": LINEAR}, "rope_scaling=LinearScaling.* is not supported for this family"),
    ],
)
def test_options_that_the_decoder_lacks_are_refused_by_name_with_the_value_found(name, changes, message):
    with pytest.raises(ValueError, match="config.json: .*" + message):
        read(name, **changes)


@pytest.mark.parametrize("model_type", ["t5", "gemma", "gemma3", "mixtral", "smollm3", "qwen3_moe", None])
def test_an_unknown_family_is_refused_by_name_with_the_list_of_known_ones(model_type, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    with pytest.raises(
        ValueError, match=f"model_type={model_type!r} is not supported; .*'gemma2', 'gemma3_text', 'gpt2'"
    ):
        read_config(tmp_path)


def test_dropouts_do_not_keep_a_model_from_loading_and_are_written_as_none():
    assert KNOWN["gpt2"]["resid_pdrop"] == 0.1
    raw = FAMILIES["gpt2"].write_config(read("gpt2"))
    assert {raw[key] for key in ("resid_pdrop", "embd_pdrop", "attn_pdrop")} == {0.0}
    assert read("pythia-160m", hidden_dropout=0.1, attention_dropout=0.1) == read("pythia-160m")


@pytest.mark.parametrize("name", KNOWN)
def test_transformers_spells_out_the_same_model_from_the_published_file_and_from_ours(name):
    from transformers import AutoConfig

    config = read(name)
    family = FAMILIES[config.model_type]
    for raw in (KNOWN[name], family.write_config(config)):
        spelled_out = AutoConfig.for_model(**raw).to_dict()
        assert family.read_config(spelled_out | {"architectures": None}, "config.json") == config
