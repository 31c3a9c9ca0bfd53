"""Configs of models that people start from, as published, become the right `ModelConfig`."""

import dataclasses
from typing import Any

import pytest

from jaxrlhf.models.config import LayerKind, Llama3Scaling, ModelConfig
from jaxrlhf.models.folder import FAMILIES
from jaxrlhf.models.tensors import tensor_entries
from tests.models.families.known import KNOWN

LLAMA_3_2 = Llama3Scaling(factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_positions=8192)
LOCAL, GLOBAL = LayerKind(window=512), LayerKind(rope_theta=1e6)
GEMMA = {
    "embedding_scale": 48.0,  # sqrt(2304)
    "query_scale": 0.0625,  # 1 / sqrt(256)
    "norm_offset": 1.0,
    "norm_placement": "both",
    "activation": "gelu_tanh",
    "norm_eps": 1e-6,
    "tie_embeddings": True,
}
LAYER_NORM = {"norm": "layer", "gated_mlp": False, "qkv_bias": True, "out_bias": True, "mlp_bias": True}

READ: dict[str, dict[str, Any]] = {
    "Llama-3.2-1B": {
        "pattern": (LayerKind(rope_theta=5e5, rope_scaling=LLAMA_3_2),),
        "tie_embeddings": True,
    },
    "SmolLM2-135M": {"pattern": (LayerKind(rope_theta=1e5),), "tie_embeddings": True},
    "Mistral-7B-v0.1": {"pattern": (LayerKind(window=4096),)},
    "Qwen2.5-0.5B": {
        "pattern": (GLOBAL,),  # the window of the file is switched off
        "qkv_bias": True,
        "norm_eps": 1e-6,
        "tie_embeddings": True,
    },
    "Qwen3-0.6B": {"pattern": (GLOBAL,), "qk_norm": "head", "norm_eps": 1e-6, "tie_embeddings": True},
    "gemma-2-2b": {
        **GEMMA,
        "pattern": (LayerKind(window=4096), LayerKind()),
        "attention_softcap": 50.0,
        "final_softcap": 30.0,
    },
    "gemma-3-1b": {**GEMMA, "pattern": (*[LOCAL] * 5, GLOBAL), "qk_norm": "head", "embedding_scale": 1152**0.5},
    "gpt2": {
        **LAYER_NORM,
        "pattern": (LayerKind(rope_theta=None),),
        "learned_positions": True,
        "activation": "gelu_tanh",
        "tie_embeddings": True,
    },
    "pythia-160m": {**LAYER_NORM, "rotary_dim": 16, "parallel_residual": True, "activation": "gelu"},
    "Phi-3-mini-4k": {"pattern": (LayerKind(window=2047),)},
    "OLMo-2-1B": {
        "pattern": (LayerKind(rope_theta=5e5),),
        "norm_placement": "post",
        "qk_norm": "width",
        "norm_eps": 1e-6,
    },
}
"""Name -> options that differ from the defaults of `ModelConfig`."""

SIZES = {
    "Llama-3.2-1B": (128256, 2048, 8192, 16, 32, 8, 64, 131072),
    "SmolLM2-135M": (49152, 576, 1536, 30, 9, 3, 64, 8192),
    "Mistral-7B-v0.1": (32000, 4096, 14336, 32, 32, 8, 128, 32768),
    "Qwen2.5-0.5B": (151936, 896, 4864, 24, 14, 2, 64, 32768),
    "Qwen3-0.6B": (151936, 1024, 3072, 28, 16, 8, 128, 40960),
    "gemma-2-2b": (256000, 2304, 9216, 26, 8, 4, 256, 8192),
    "gemma-3-1b": (262144, 1152, 6912, 26, 4, 1, 256, 32768),
    "gpt2": (50257, 768, 3072, 12, 12, 12, 64, 1024),
    "pythia-160m": (50304, 768, 3072, 12, 12, 12, 64, 2048),
    "Phi-3-mini-4k": (32064, 3072, 8192, 32, 32, 32, 96, 4096),
    "OLMo-2-1B": (100352, 2048, 8192, 16, 16, 16, 128, 4096),
}
"""Name -> vocab_size, hidden_size, intermediate_size, num_layers, num_heads, num_kv_heads, head_dim, max_positions."""

PARAMETERS = {  # millions, as the publishers count them, or more exactly
    "Llama-3.2-1B": 1235.8,
    "SmolLM2-135M": 134.5,
    "Mistral-7B-v0.1": 7241.7,
    "Qwen2.5-0.5B": 494.0,
    "Qwen3-0.6B": 596.0,
    "gemma-2-2b": 2614.3,
    "gemma-3-1b": 999.9,
    "gpt2": 124.4,
    "pythia-160m": 162.3,
    "Phi-3-mini-4k": 3821.1,
    "OLMo-2-1B": 1484.9,
}


def read(name: str, **changes: Any) -> ModelConfig:
    raw = KNOWN[name] | changes
    return FAMILIES[raw["model_type"]].read_config(raw, "config.json")


@pytest.mark.parametrize("name", KNOWN)
def test_a_published_config_reads_into_sizes_and_options(name):
    names = [field.name for field in dataclasses.fields(ModelConfig)]
    sizes = dict(zip(names, SIZES[name], strict=False))
    assert read(name) == ModelConfig(**sizes, **READ[name], model_type=KNOWN[name]["model_type"])


@pytest.mark.parametrize("name", KNOWN)
def test_the_weight_table_has_as_many_parameters_as_the_published_model(name):
    count = 0
    for entry in tensor_entries(read(name)):
        size = 1
        for axis in entry.shape:
            size *= axis
        count += size
    assert round(count / 1e6, 1) == PARAMETERS[name]


@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.parametrize("scalar", [False, True])
def test_what_is_written_reads_back_the_same(name, scalar):
    config = dataclasses.replace(read(name), scalar_head=scalar)
    family = FAMILIES[config.model_type]
    raw = family.write_config(config)
    assert family.read_config(raw, "config.json") == config
    assert raw["architectures"] == [family.scalar_architecture if scalar else family.architecture]
    assert ("id2label" in raw) == scalar


def test_every_family_has_a_known_model():
    assert {raw["model_type"] for raw in KNOWN.values()} == FAMILIES.keys()
