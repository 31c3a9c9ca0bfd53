"""The Gemma 2 family: scaled embeddings, norms on both sides, soft caps, a window in every other layer."""

from __future__ import annotations

import math
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

GEMMA_FIELDS = FIELDS | {
    "hidden_activation": "activation",
    "attention_bias": ("qkv_bias", "out_bias"),
    "final_logit_softcapping": "final_softcap",
}
GEMMA_DEFAULTS = DEFAULTS | {
    "num_key_value_heads": 4,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "tie_word_embeddings": True,
}
GEMMA_FIXED = {"norm_placement": "both", "norm_offset": 1.0}
"""What Gemma 3 has too."""


def read_scales(raw: Raw, fields: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
    """Reads the factors of embeddings, sqrt(D), and of queries, `query_pre_attn_scalar` ** -0.5.

    Args:
        raw: contents of the file.
        fields: what was read already.
        problems: to add to.

    Returns:
        `embedding_scale` and `query_scale`.
    """
    query_scale = read_number(raw, "query_pre_attn_scalar", 256, problems) ** -0.5
    return {"embedding_scale": fields["hidden_size"] ** 0.5, "query_scale": query_scale}


def write_scales(config: ModelConfig) -> dict[str, Any]:
    """Writes the factor of queries; that of embeddings follows from the width.

    Args:
        config: to write.

    Returns:
        `query_pre_attn_scalar`, a whole number if one reads back as the same factor.
    """
    scalar = config.attention_scale**-2
    near = (round(scalar), round(scalar, 9), scalar, math.nextafter(scalar, 0), math.nextafter(scalar, math.inf))
    exact = (number for number in near if number > 0 and number**-0.5 == config.attention_scale)
    return {"query_pre_attn_scalar": next(exact, scalar)}


def _read_rest(raw: Raw, fields: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
    rope, window = read_rope(raw, problems), read_window(raw, 4096, problems)
    default = [FULL if layer % 2 else SLIDING for layer in range(fields["num_layers"])]
    pattern = read_pattern(raw, default, LayerKind(**rope), LayerKind(window=window, **rope), problems)
    return {"pattern": pattern, **read_scales(raw, fields, problems)}


def _write_rest(config: ModelConfig) -> dict[str, Any]:
    return write_rope(config.pattern[0]) | write_pattern(config) | write_scales(config)


_CONFIG = ConfigTable(
    model_type="gemma2",
    architecture="Gemma2ForCausalLM",
    scalar_architecture="Gemma2ForSequenceClassification",
    fields=GEMMA_FIELDS | {"attn_logit_softcapping": "attention_softcap"},
    defaults=GEMMA_DEFAULTS | {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
    only={"partial_rotary_factor": 1.0, "use_bidirectional_attention": False},
    fixed=GEMMA_FIXED,
    read_rest=_read_rest,
    write_rest=_write_rest,
)

GEMMA2 = make_family(_CONFIG, TENSORS, IGNORED)
