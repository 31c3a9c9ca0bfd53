"""The Phi-3 family: Llama with fused projections, and heads that may turn in part."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxrlhf.models.config import LayerKind, ModelConfig
from jaxrlhf.models.families.config_table import ConfigTable, Raw, make_family
from jaxrlhf.models.families.family import Tensor
from jaxrlhf.models.families.llama_style import DEFAULTS, ENDS, FIELDS, IGNORED, NORMS, projection
from jaxrlhf.models.families.positions import read_rope, read_rotary_dim, read_window, write_rope, write_share

_QKV = ("layers/self_attn/q_proj/kernel", "layers/self_attn/k_proj/kernel", "layers/self_attn/v_proj/kernel")
_GATE_UP = ("layers/mlp/gate_proj/kernel", "layers/mlp/up_proj/kernel")

_TENSORS = (
    *ENDS,
    *NORMS,
    Tensor("model.layers.{layer}.self_attn.qkv_proj.weight", _QKV, transpose=True),
    *projection("self_attn", "o_proj"),
    Tensor("model.layers.{layer}.mlp.gate_up_proj.weight", _GATE_UP, transpose=True),
    *projection("mlp", "down_proj"),
)


def _read_rest(raw: Raw, fields: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
    kind = LayerKind(window=read_window(raw, None, problems), **read_rope(raw, problems, partial=True))
    if kind.rope_scaling is not None:
        problems.append(f"rope_scaling={kind.rope_scaling} is not supported for this family; only null is")
    return {"pattern": (kind,), "rotary_dim": read_rotary_dim(raw, fields["head_dim"], problems)}


def _write_rest(config: ModelConfig) -> dict[str, Any]:
    window = config.pattern[0].window
    return write_rope(config.pattern[0]) | {"sliding_window": window, "partial_rotary_factor": write_share(config)}


_CONFIG = ConfigTable(
    model_type="phi3",
    architecture="Phi3ForCausalLM",
    scalar_architecture="Phi3ForSequenceClassification",
    fields=FIELDS | {"hidden_act": "activation"},
    defaults=DEFAULTS | {"rms_norm_eps": 1e-5},
    read_rest=_read_rest,
    write_rest=_write_rest,
)

PHI3 = make_family(_CONFIG, _TENSORS, IGNORED)
