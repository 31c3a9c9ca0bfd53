"""The Mistral family: Llama with a window in every layer, or without one (version 0.3)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxrlhf.models.config import LayerKind, ModelConfig
from jaxrlhf.models.families.config_table import ConfigTable, Raw, make_family
from jaxrlhf.models.families.llama_style import DEFAULTS, FIELDS, IGNORED, TENSORS
from jaxrlhf.models.families.positions import read_rope, read_window, write_rope


def _read_rest(raw: Raw, fields: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
    del fields
    return {"pattern": (LayerKind(window=read_window(raw, 4096, problems), **read_rope(raw, problems)),)}


def _write_rest(config: ModelConfig) -> dict[str, Any]:
    return write_rope(config.pattern[0]) | {"sliding_window": config.pattern[0].window}


_CONFIG = ConfigTable(
    model_type="mistral",
    architecture="MistralForCausalLM",
    scalar_architecture="MistralForSequenceClassification",
    fields=FIELDS | {"hidden_act": "activation"},
    defaults=DEFAULTS | {"num_key_value_heads": 8},
    only={"partial_rotary_factor": 1.0, "layer_types": None},
    read_rest=_read_rest,
    write_rest=_write_rest,
)

MISTRAL = make_family(_CONFIG, TENSORS, IGNORED)
