import dataclasses

import pytest

from jaxrlhf.models.config import LayerKind
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


def read(**changes):
    return LLAMA.read_config(RAW | changes, "config.json")


def test_what_a_file_leaves_out_has_the_default_of_transformers():
    assert read() == TINY  # head_dim from width and heads, theta 10000, not tied, silu, no biases
    assert LLAMA.read_config({key: RAW[key] for key in RAW if key != "rms_norm_eps"}, "").norm_eps == 1e-6


def test_sizes_that_are_null_follow_from_others():
    assert read(num_key_value_heads=None, head_dim=None) == dataclasses.replace(TINY, num_kv_heads=4)


def test_a_published_reward_model_has_a_scalar_head():
    assert read(architectures=["LlamaForSequenceClassification"]) == SCALAR


@pytest.mark.parametrize(("published", "ours"), [
    ("swish", "silu"), ("gelu", "gelu"), ("gelu_new", "gelu_tanh"), ("gelu_pytorch_tanh", "gelu_tanh"),
])  # fmt: skip
def test_activations_have_several_published_names(published, ours):
    assert read(hidden_act=published).activation == ours


def test_dropouts_are_ignored_since_they_are_no_part_of_the_function():
    assert read(attention_dropout=0.1) == TINY


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "relu"}, "hidden_act='relu' is not supported; only 'silu', 'swish', 'gelu'"),
        ({"hidden_act": ["silu"]}, r"hidden_act=\['silu'\] is not supported"),
        ({"quantization_config": {"bits": 4}}, "quantization_config={'bits': 4} is not supported; only None is"),
        ({"is_causal": False}, "is_causal=False is not supported; only True is"),
        ({"architectures": ["LlamaForTokenClassification"]}, r"architectures=\['LlamaForTokenClassification'\] is not"),
        ({"vocab_size": None}, "vocab_size=None must be a whole number"),
        ({"num_hidden_layers": True}, "num_hidden_layers=True must be a whole number"),
        ({"rms_norm_eps": "1e-5"}, "rms_norm_eps='1e-5' must be a number"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings=1 must be true or false"),
        ({"num_attention_heads": 0}, "num_heads=0 must be positive"),
        ({"num_key_value_heads": 3}, "num_kv_heads=3 does not divide num_heads=4"),
    ],
)
def test_what_is_not_supported_is_refused_by_name_with_the_value_found(changes, message):
    with pytest.raises(ValueError, match="config.json: " + message):
        read(**changes)


def test_all_problems_of_a_config_are_reported_together():
    with pytest.raises(ValueError, match="hidden_size=None.*; hidden_act='relu'.*; is_causal=False") as error:
        read(hidden_act="relu", is_causal=False, hidden_size=None)
    assert "head_dim" not in str(error.value)  # it follows from what is wrong already
    with pytest.raises(ValueError, match="is_causal=False.*; rope_theta=-1"):
        read(is_causal=False, rope_theta=-1)


@pytest.mark.parametrize(("changes", "message"), [
    ({"norm": "layer", "gated_mlp": False}, "'llama' cannot say norm='layer', gated_mlp=False"),
    ({"qkv_bias": True}, "cannot say out_bias=False"),  # transformers has one switch for both
    ({"pattern": (LayerKind(window=8),)}, r"cannot say pattern=\(LayerKind\(window=8"),
    ({"model_type": "mistral"}, "cannot say model_type='mistral'"),
])  # fmt: skip
def test_a_config_that_the_family_has_no_words_for_is_not_written(changes, message):
    with pytest.raises(ValueError, match=message):
        LLAMA.write_config(dataclasses.replace(TINY, **changes))


def test_a_pattern_may_be_longer_than_it_needs_to_be():
    config = dataclasses.replace(TINY, pattern=(LayerKind(), LayerKind()))
    assert LLAMA.read_config(LLAMA.write_config(config), "") == TINY
