"""The GPT-NeoX family, of which Pythia is one: a parallel residual, heads that turn in part, layer norms, biases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxrlhf.models.config import LayerKind, ModelConfig
from jaxrlhf.models.families.config_table import ConfigTable, Raw, make_family
from jaxrlhf.models.families.family import Tensor
from jaxrlhf.models.families.positions import read_rope, read_rotary_dim, write_rope, write_share

_BLOCK = "gpt_neox.layers.{layer}"
_QKV = ("q_proj", "k_proj", "v_proj")
_QKV_KERNELS = tuple(f"layers/self_attn/{name}/kernel" for name in _QKV)
_QKV_BIASES = tuple(f"layers/self_attn/{name}/bias" for name in _QKV)

_TENSORS = (
    Tensor("gpt_neox.embed_in.weight", "embed_tokens/embedding"),
    Tensor(f"{_BLOCK}.input_layernorm.weight", "layers/input_layernorm/scale"),
    Tensor(f"{_BLOCK}.input_layernorm.bias", "layers/input_layernorm/bias"),
    Tensor(f"{_BLOCK}.attention.query_key_value.weight", _QKV_KERNELS, transpose=True, by_head=True),
    Tensor(f"{_BLOCK}.attention.query_key_value.bias", _QKV_BIASES, by_head=True),
    Tensor(f"{_BLOCK}.attention.dense.weight", "layers/self_attn/o_proj/kernel", transpose=True),
    Tensor(f"{_BLOCK}.attention.dense.bias", "layers/self_attn/o_proj/bias"),
    Tensor(f"{_BLOCK}.post_attention_layernorm.weight", "layers/post_attention_layernorm/scale"),
    Tensor(f"{_BLOCK}.post_attention_layernorm.bias", "layers/post_attention_layernorm/bias"),
    Tensor(f"{_BLOCK}.mlp.dense_h_to_4h.weight", "layers/mlp/up_proj/kernel", transpose=True),
    Tensor(f"{_BLOCK}.mlp.dense_h_to_4h.bias", "layers/mlp/up_proj/bias"),
    Tensor(f"{_BLOCK}.mlp.dense_4h_to_h.weight", "layers/mlp/down_proj/kernel", transpose=True),
    Tensor(f"{_BLOCK}.mlp.dense_4h_to_h.bias", "layers/mlp/down_proj/bias"),
    Tensor("gpt_neox.final_layer_norm.weight", "norm/scale"),
    Tensor("gpt_neox.final_layer_norm.bias", "norm/bias"),
    Tensor("embed_out.weight", "lm_head/kernel"),
    Tensor("score.weight", "score/kernel"),
)

# Older files carry the causal mask, and frequencies that follow from the config.
_IGNORED = (r"\.attention\.(masked_)?bias$", r"rotary_emb\.inv_freq$")


def _read_rest(raw: Raw, fields: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
    # Versions of transformers disagree on which of two names goes first, so they must not disagree.
    for ours, other in (("rotary_emb_base", "rope_theta"), ("rotary_pct", "partial_rotary_factor")):
        if raw.get(other) is not None and raw[other] != raw.get(ours):
            problems.append(f"{other}={raw[other]!r} and {ours}={raw.get(ours)!r} must be equal")
    rope = read_rope(raw, problems, theta_key="rotary_emb_base", partial=True)
    width = read_rotary_dim(raw, fields["head_dim"], problems, share_key="rotary_pct", share=0.25)
    return {"pattern": (LayerKind(**rope),), "rotary_dim": width}


def _write_rest(config: ModelConfig) -> dict[str, Any]:
    return write_rope(config.pattern[0], theta_key="rotary_emb_base") | {"rotary_pct": write_share(config)}


_CONFIG = ConfigTable(
    model_type="gpt_neox",
    architecture="GPTNeoXForCausalLM",
    scalar_architecture="GPTNeoXForSequenceClassification",
    fields={
        "vocab_size": "vocab_size",
        "hidden_size": "hidden_size",
        "intermediate_size": "intermediate_size",
        "num_hidden_layers": "num_layers",
        "num_attention_heads": ("num_heads", "num_kv_heads"),
        "head_dim": "head_dim",
        "max_position_embeddings": "max_positions",
        "layer_norm_eps": "norm_eps",
        "hidden_act": "activation",
        "use_parallel_residual": "parallel_residual",
        "attention_bias": ("qkv_bias", "out_bias"),
        "tie_word_embeddings": "tie_embeddings",
    },
    defaults={
        "layer_norm_eps": 1e-5,
        "hidden_act": "gelu",
        "use_parallel_residual": True,
        "attention_bias": True,
        "tie_word_embeddings": False,
    },
    fixed={"norm": "layer", "gated_mlp": False, "mlp_bias": True},
    read_rest=_read_rest,
    write_rest=_write_rest,
)

GPT_NEOX = make_family(_CONFIG, _TENSORS, _IGNORED)
