"""The Gemma 3 family without its vision tower: Gemma 2 with norms of queries and keys, and two rotary bases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxrlhf.models.config import LayerKind, ModelConfig
from jaxrlhf.models.families.config_table import ConfigTable, Raw, make_family, read_number
from jaxrlhf.models.families.gemma2 import GEMMA_DEFAULTS, GEMMA_FIELDS, GEMMA_FIXED, read_scales, write_scales
from jaxrlhf.models.families.llama_style import IGNORED, TENSORS
from jaxrlhf.models.families.positions import (
    FULL,
    SLIDING,
    read_pattern,
    read_rope,
    read_window,
    write_pattern,
    write_rope,
)


def _read_rest(raw: Raw, fields: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
    rope = _rope_by_type(raw, problems)
    full = LayerKind(**read_rope(rope[FULL], problems))
    sliding = LayerKind(window=read_window(raw, 4096, problems), **read_rope(rope[SLIDING], problems))
    period = read_number(raw, "sliding_window_pattern", 6, problems)
    default = [SLIDING if (layer + 1) % period else FULL for layer in range(fields["num_layers"])]
    return {"pattern": read_pattern(raw, default, full, sliding, problems), **read_scales(raw, fields, problems)}


def _rope_by_type(raw: Raw, problems: list[str]) -> dict[str, dict[str, Any]]:
    """Rotary options of each type of layer, as in a config with one type; the older spelling scales `FULL` only."""
    by_type = raw.get("rope_parameters") or {}
    if not isinstance(by_type, dict) or not by_type.keys() <= {FULL, SLIDING}:
        problems.append(f"rope_parameters={by_type!r} must be an object of {FULL!r} and {SLIDING!r}")
        by_type = {}
    bases = {FULL: raw.get("rope_theta", 1e6), SLIDING: raw.get("rope_local_base_freq", 1e4)}
    ropes = {name: {"rope_theta": base, "rope_parameters": by_type.get(name)} for name, base in bases.items()}
    ropes[FULL]["rope_scaling"] = raw.get("rope_scaling")
    return ropes


def _write_rest(config: ModelConfig) -> dict[str, Any]:
    raw = write_pattern(config) | write_scales(config)
    for kind in config.pattern:
        if kind.window is None:
            raw |= write_rope(kind)
        else:
            raw |= {"rope_local_base_freq": kind.rope_theta}
    return raw


_CONFIG = ConfigTable(
    model_type="gemma3_text",
    architecture="Gemma3ForCausalLM",
    scalar_architecture="Gemma3TextForSequenceClassification",
    fields=GEMMA_FIELDS,
    defaults=GEMMA_DEFAULTS,
    only={"partial_rotary_factor": 1.0, "use_bidirectional_attention": False, "attn_logit_softcapping": None},
    fixed=GEMMA_FIXED | {"qk_norm": "head"},
    read_rest=_read_rest,
    write_rest=_write_rest,
)

GEMMA3_TEXT = make_family(_CONFIG, TENSORS, IGNORED)
