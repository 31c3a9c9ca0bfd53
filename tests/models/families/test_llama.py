import dataclasses

import pytest

from jaxrlhf.models.config import LinearScaling, Llama3Scaling
from jaxrlhf.models.families.llama import LLAMA
from tests.models.tiny import SCALAR, TINY

RAW = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
}
STRETCH = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
STRETCHED = Llama3Scaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_positions=16)


def read(**changes):
    return LLAMA.read_config(RAW | changes, "config.json")


def test_a_published_config_becomes_ours_with_the_published_defaults():
    assert read() == TINY  # head_dim from width and heads, theta 10000, not tied
    assert dataclasses.replace(TINY, num_kv_heads=4) == read(num_key_value_heads=None)
    assert read(head_dim=16).head_dim == 16
    assert read(architectures=["LlamaForSequenceClassification"]) == SCALAR


@pytest.mark.parametrize("changes", [
    {"rope_theta": 5e5, "rope_scaling": STRETCH},
    {"rope_parameters": {"rope_theta": 5e5} | STRETCH},
    {"rope_theta": 5e5, "rope_scaling": {"type" if key == "rope_type" else key: x for key, x in STRETCH.items()}},
])  # fmt: skip
def test_old_and_new_spellings_of_rotary_options_mean_the_same(changes):
    assert read(**changes) == dataclasses.replace(TINY, rope_theta=5e5, rope_scaling=STRETCHED)


@pytest.mark.parametrize("changes", [
    {}, {"tie_embeddings": True}, {"scalar_head": True}, {"rope_theta": 5e5, "rope_scaling": STRETCHED},
    {"rope_scaling": LinearScaling(factor=2.0)}, {"head_dim": 16},
])  # fmt: skip
def test_what_is_written_reads_back_the_same(changes):
    config = dataclasses.replace(TINY, **changes)
    assert LLAMA.read_config(LLAMA.write_config(config), "config.json") == config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "gelu"}, "hidden_act='gelu' is not supported; only 'silu' is"),
        ({"attention_bias": True}, "attention_bias=True is not supported; only False is"),
        ({"mlp_bias": True}, "mlp_bias=True is not supported"),
        ({"attention_dropout": 0.1}, "attention_dropout=0.1 is not supported"),
        ({"quantization_config": {"bits": 4}}, "quantization_config={'bits': 4} is not supported; only None is"),
        ({"architectures": ["LlamaForTokenClassification"]}, r"architectures=\['LlamaForTokenClassification'\] is not"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0}}, "rope_type='yarn' is not supported; only 'default', 'lin"),
        (
            {"rope_scaling": {"type": "llama3", "factor": 2.0}},
            "rope_type='llama3' needs numbers for low_freq_factor, h",
        ),
        ({"rope_scaling": 3}, "rope_scaling=3 must be an object"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor=0.5 is not supported"),
        ({"rope_theta": "1e4"}, "rope_theta='1e4' must be a number"),
        ({"vocab_size": None}, "vocab_size=None must be int"),
        ({"num_hidden_layers": True}, "num_hidden_layers=True must be int"),
        ({"rms_norm_eps": "1e-5"}, "rms_norm_eps='1e-5' must be a number"),
        ({"num_key_value_heads": 3}, "num_kv_heads=3 does not divide num_heads=4"),
    ],
)
def test_what_is_not_supported_is_refused_by_name_with_the_value_found(changes, message):
    with pytest.raises(ValueError, match="config.json: " + message):
        read(**changes)


def test_all_problems_of_a_config_are_reported_together():
    with pytest.raises(ValueError, match="hidden_act='gelu'.*; mlp_bias=True.*; hidden_size=None"):
        read(hidden_act="gelu", mlp_bias=True, hidden_size=None, head_dim=8)
