"""The Llama family: RMSNorm, rotary positions, grouped-query attention, gated SiLU, no biases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxrlhf.models.config import LinearScaling, Llama3Scaling, ModelConfig
from jaxrlhf.models.families.family import Family, Tensor

_ARCHITECTURE = "LlamaForCausalLM"
_SCALAR_ARCHITECTURE = "LlamaForSequenceClassification"

_TENSORS = (
    Tensor("model.embed_tokens.weight", "embed_tokens/embedding"),
    Tensor("model.layers.{layer}.input_layernorm.weight", "layers/input_layernorm/scale"),
    Tensor("model.layers.{layer}.self_attn.q_proj.weight", "layers/self_attn/q_proj/kernel", transpose=True),
    Tensor("model.layers.{layer}.self_attn.k_proj.weight", "layers/self_attn/k_proj/kernel", transpose=True),
    Tensor("model.layers.{layer}.self_attn.v_proj.weight", "layers/self_attn/v_proj/kernel", transpose=True),
    Tensor("model.layers.{layer}.self_attn.o_proj.weight", "layers/self_attn/o_proj/kernel", transpose=True),
    Tensor("model.layers.{layer}.post_attention_layernorm.weight", "layers/post_attention_layernorm/scale"),
    Tensor("model.layers.{layer}.mlp.gate_proj.weight", "layers/mlp/gate_proj/kernel", transpose=True),
    Tensor("model.layers.{layer}.mlp.up_proj.weight", "layers/mlp/up_proj/kernel", transpose=True),
    Tensor("model.layers.{layer}.mlp.down_proj.weight", "layers/mlp/down_proj/kernel", transpose=True),
    Tensor("model.norm.weight", "norm/scale"),
    Tensor("lm_head.weight", "lm_head/kernel"),
    Tensor("score.weight", "score/kernel"),
)

_IGNORED = (r"rotary_emb\.inv_freq$",)  # older files carry this buffer, which follows from the config

_FIELDS = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "num_key_value_heads": "num_kv_heads",
    "head_dim": "head_dim",
    "max_position_embeddings": "max_positions",
    "rms_norm_eps": "rms_eps",
    "tie_word_embeddings": "tie_embeddings",
}
"""Published key -> field. What a file leaves out has the default of `transformers`, where that has a safe one."""

_TYPES = {"rms_norm_eps": (int, float), "tie_word_embeddings": bool}
"""Of the published values that are not whole numbers."""

_ONLY = {
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "attention_dropout": 0.0,
    "partial_rotary_factor": 1.0,
    "quantization_config": None,
}
"""Options that change the model, and the one value of each that is supported."""

_SCALINGS = {
    "linear": (LinearScaling, {"factor": "factor"}),
    "llama3": (
        Llama3Scaling,
        {
            "factor": "factor",
            "low_freq_factor": "low_freq_factor",
            "high_freq_factor": "high_freq_factor",
            "original_max_position_embeddings": "original_max_positions",
        },
    ),
}
"""`rope_type` -> its class, and published key -> field."""


def _read_config(raw: Mapping[str, Any], where: str) -> ModelConfig:
    problems = [
        f"{key}={raw[key]!r} is not supported; only {only!r} is"
        for key, only in _ONLY.items()
        if raw.get(key, only) != only
    ]
    architectures = raw.get("architectures") or [_ARCHITECTURE]
    if architectures not in ([_ARCHITECTURE], [_SCALAR_ARCHITECTURE]):
        problems.append(f"architectures={architectures!r} is not one of {_ARCHITECTURE}, {_SCALAR_ARCHITECTURE}")
    fields = _read_fields(raw, problems) | _read_rope(raw, problems)
    if problems:
        raise ValueError(f"{where}: " + "; ".join(problems))
    try:
        return ModelConfig(scalar_head=architectures == [_SCALAR_ARCHITECTURE], **fields)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _read_fields(raw: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
    values = {key: raw[key] for key in _FIELDS if raw.get(key) is not None}
    values = {"rms_norm_eps": 1e-6, "tie_word_embeddings": False} | values
    heads = values.get("num_attention_heads")
    values.setdefault("num_key_value_heads", heads)
    if isinstance(heads, int) and isinstance(values.get("hidden_size"), int) and heads > 0:
        values.setdefault("head_dim", values["hidden_size"] // heads)
    for key in _FIELDS:
        kind = _TYPES.get(key, int)
        found = values.get(key)
        if not isinstance(found, kind) or (kind is not bool and isinstance(found, bool)):
            problems.append(f"{key}={found!r} must be {getattr(kind, '__name__', 'a number')}")
    return {field: values.get(key) for key, field in _FIELDS.items()}


def _read_rope(raw: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
    """Reads `rope_parameters` (transformers 5), or `rope_theta` and `rope_scaling` (before)."""
    spelling = "rope_parameters" if raw.get("rope_parameters") else "rope_scaling"
    rope = raw.get(spelling) or {}
    if not isinstance(rope, dict):
        problems.append(f"{spelling}={rope!r} must be an object")
        return {}
    theta = rope.get("rope_theta", raw.get("rope_theta", 10000.0))
    if not isinstance(theta, (int, float)):
        problems.append(f"rope_theta={theta!r} must be a number")
    kind = rope.get("rope_type", rope.get("type", "default"))
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        problems.append(f"partial_rotary_factor={rope['partial_rotary_factor']!r} is not supported; only 1.0 is")
    if kind == "default":
        return {"rope_theta": theta, "rope_scaling": None}
    if kind not in _SCALINGS:
        problems.append(f"rope_type={kind!r} is not supported; only 'default', {str(sorted(_SCALINGS))[1:-1]} are")
        return {}
    scaling, keys = _SCALINGS[kind]
    missing = [key for key in keys if not isinstance(rope.get(key), (int, float))]
    if missing:
        problems.append(f"rope_type={kind!r} needs numbers for {', '.join(missing)}")
        return {}
    return {"rope_theta": theta, "rope_scaling": scaling(**{field: rope[key] for key, field in keys.items()})}


def _write_config(config: ModelConfig) -> dict[str, Any]:
    raw = {
        "architectures": [_SCALAR_ARCHITECTURE if config.scalar_head else _ARCHITECTURE],
        "model_type": config.model_type,
        **{key: getattr(config, field) for key, field in _FIELDS.items()},
        **{key: only for key, only in _ONLY.items() if only is not None and key != "partial_rotary_factor"},
        # The older spelling: version 5 of transformers reads both, version 4 would pass over `rope_parameters`.
        "rope_theta": config.rope_theta,
    }
    for kind, (scaling, keys) in _SCALINGS.items():
        if isinstance(config.rope_scaling, scaling):
            values = {key: getattr(config.rope_scaling, field) for key, field in keys.items()}
            raw["rope_scaling"] = {"rope_type": kind, **values}
    if config.scalar_head:
        raw |= {"id2label": {"0": "score"}, "label2id": {"score": 0}}  # one label
    return raw


LLAMA = Family(
    architecture=_ARCHITECTURE,
    scalar_architecture=_SCALAR_ARCHITECTURE,
    tensors=_TENSORS,
    ignored=_IGNORED,
    read_config=_read_config,
    write_config=_write_config,
)
