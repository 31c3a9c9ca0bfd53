"""The OLMo 2 family: Llama with norms behind attention and MLP, and norms of queries and keys as a whole."""

from __future__ import annotations

from jaxrlhf.models.families.config_table import ConfigTable, make_family
from jaxrlhf.models.families.llama import read_rest, write_rest
from jaxrlhf.models.families.llama_style import DEFAULTS, FIELDS, IGNORED, TENSORS

_CONFIG = ConfigTable(
    model_type="olmo2",
    architecture="Olmo2ForCausalLM",
    scalar_architecture="Olmo2ForSequenceClassification",
    fields=FIELDS | {"hidden_act": "activation", "attention_bias": ("qkv_bias", "out_bias")},
    defaults=DEFAULTS | {"rms_norm_eps": 1e-5},
    only={"partial_rotary_factor": 1.0},
    fixed={"norm_placement": "post", "qk_norm": "width"},
    read_rest=read_rest,
    write_rest=write_rest,
)

OLMO2 = make_family(_CONFIG, TENSORS, IGNORED)
