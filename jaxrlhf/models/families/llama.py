"""The Llama family, of which SmolLM is one: RMS norms, rotary positions, grouped-query attention, a gated MLP."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxrlhf.models.config import LayerKind, ModelConfig
from jaxrlhf.models.families.config_table import ConfigTable, Raw, make_family
from jaxrlhf.models.families.llama_style import DEFAULTS, FIELDS, IGNORED, TENSORS
from jaxrlhf.models.families.positions import read_rope, write_rope


def read_rest(raw: Raw, fields: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
    """Reads positions: all layers are of one kind, without a window.

    Args:
        raw: contents of the file.
        fields: not used.
        problems: to add to.

    Returns:
        `pattern`.
    """
    del fields
    return {"pattern": (LayerKind(**read_rope(raw, problems)),)}


def write_rest(config: ModelConfig) -> dict[str, Any]:
    """Writes positions.

    Args:
        config: to write.

    Returns:
        Keys and values.
    """
    return write_rope(config.pattern[0])


_CONFIG = ConfigTable(
    model_type="llama",
    architecture="LlamaForCausalLM",
    scalar_architecture="LlamaForSequenceClassification",
    fields=FIELDS | {"hidden_act": "activation", "attention_bias": ("qkv_bias", "out_bias"), "mlp_bias": "mlp_bias"},
    defaults=DEFAULTS | {"mlp_bias": False},
    only={"partial_rotary_factor": 1.0},
    read_rest=read_rest,
    write_rest=write_rest,
)

LLAMA = make_family(_CONFIG, TENSORS, IGNORED)
