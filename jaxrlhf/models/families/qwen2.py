"""The Qwen 2 and 2.5 family: Llama with biases of queries, keys and values, and, if asked, windows in upper layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxrlhf.models.config import LayerKind, ModelConfig
from jaxrlhf.models.families.config_table import ConfigTable, Raw, make_family, read_number
from jaxrlhf.models.families.llama_style import DEFAULTS, FIELDS, IGNORED, TENSORS
from jaxrlhf.models.families.positions import (
    FULL,
    SLIDING,
    read_pattern,
    read_rope,
    read_window,
    write_pattern,
    write_rope,
)


def read_rest(raw: Raw, fields: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
    """Reads positions: layers from `max_window_layers` on have a window if `use_sliding_window` is set.

    Args:
        raw: contents of the file.
        fields: what was read already.
        problems: to add to.

    Returns:
        `pattern`.
    """
    rope = read_rope(raw, problems)
    window = read_window(raw, 4096, problems) if raw.get("use_sliding_window") else None
    first = read_number(raw, "max_window_layers", 28, problems, allow_zero=True)
    default = [FULL if window is None or layer < first else SLIDING for layer in range(fields["num_layers"])]
    return {"pattern": read_pattern(raw, default, LayerKind(**rope), LayerKind(window=window, **rope), problems)}


def write_rest(config: ModelConfig) -> dict[str, Any]:
    """Writes positions.

    Args:
        config: to write.

    Returns:
        Keys and values.
    """
    windows = write_pattern(config)
    types = windows["layer_types"]
    first = types.index(SLIDING) if SLIDING in types else len(types)
    switch = {"use_sliding_window": SLIDING in types, "sliding_window": None, "max_window_layers": first}
    return write_rope(config.pattern[0]) | switch | windows


_CONFIG = ConfigTable(
    model_type="qwen2",
    architecture="Qwen2ForCausalLM",
    scalar_architecture="Qwen2ForSequenceClassification",
    fields=FIELDS | {"hidden_act": "activation"},
    defaults=DEFAULTS | {"num_key_value_heads": 32},
    only={"partial_rotary_factor": 1.0},
    fixed={"qkv_bias": True},
    read_rest=read_rest,
    write_rest=write_rest,
)

QWEN2 = make_family(_CONFIG, TENSORS, IGNORED)
