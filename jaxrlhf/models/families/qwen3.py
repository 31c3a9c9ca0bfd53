"""The Qwen 3 family: Qwen 2 with norms of queries and keys instead of biases."""

from __future__ import annotations

from jaxrlhf.models.families.config_table import ConfigTable, make_family
from jaxrlhf.models.families.llama_style import DEFAULTS, FIELDS, IGNORED, TENSORS
from jaxrlhf.models.families.qwen2 import read_rest, write_rest

_CONFIG = ConfigTable(
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    scalar_architecture="Qwen3ForSequenceClassification",
    fields=FIELDS | {"hidden_act": "activation", "attention_bias": ("qkv_bias", "out_bias")},
    defaults=DEFAULTS | {"num_key_value_heads": 32, "head_dim": 128},
    only={"partial_rotary_factor": 1.0},
    fixed={"qk_norm": "head"},
    read_rest=read_rest,
    write_rest=write_rest,
)

QWEN3 = make_family(_CONFIG, TENSORS, IGNORED)
