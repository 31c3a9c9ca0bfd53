"""The GPT-2 family: learned positions, layer norms, biases everywhere, matrices published as [in, out]."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxrlhf.models.config import LayerKind, ModelConfig
from jaxrlhf.models.families.config_table import ConfigTable, Raw, make_family
from jaxrlhf.models.families.family import Tensor

_BLOCK = "transformer.h.{layer}"
_QKV = ("q_proj", "k_proj", "v_proj")

_TENSORS = (
    Tensor("transformer.wte.weight", "embed_tokens/embedding"),
    Tensor("transformer.wpe.weight", "embed_positions/embedding"),
    Tensor(f"{_BLOCK}.ln_1.weight", "layers/input_layernorm/scale"),
    Tensor(f"{_BLOCK}.ln_1.bias", "layers/input_layernorm/bias"),
    Tensor(f"{_BLOCK}.attn.c_attn.weight", tuple(f"layers/self_attn/{name}/kernel" for name in _QKV)),
    Tensor(f"{_BLOCK}.attn.c_attn.bias", tuple(f"layers/self_attn/{name}/bias" for name in _QKV)),
    Tensor(f"{_BLOCK}.attn.c_proj.weight", "layers/self_attn/o_proj/kernel"),
    Tensor(f"{_BLOCK}.attn.c_proj.bias", "layers/self_attn/o_proj/bias"),
    Tensor(f"{_BLOCK}.ln_2.weight", "layers/post_attention_layernorm/scale"),
    Tensor(f"{_BLOCK}.ln_2.bias", "layers/post_attention_layernorm/bias"),
    Tensor(f"{_BLOCK}.mlp.c_fc.weight", "layers/mlp/up_proj/kernel"),
    Tensor(f"{_BLOCK}.mlp.c_fc.bias", "layers/mlp/up_proj/bias"),
    Tensor(f"{_BLOCK}.mlp.c_proj.weight", "layers/mlp/down_proj/kernel"),
    Tensor(f"{_BLOCK}.mlp.c_proj.bias", "layers/mlp/down_proj/bias"),
    Tensor("transformer.ln_f.weight", "norm/scale"),
    Tensor("transformer.ln_f.bias", "norm/bias"),
    Tensor("lm_head.weight", "lm_head/kernel"),
    Tensor("score.weight", "score/kernel"),
)

_IGNORED = (r"\.attn\.(masked_)?bias$",)  # older files carry the causal mask


def _read_rest(raw: Raw, fields: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
    del raw, fields, problems
    return {"pattern": (LayerKind(rope_theta=None),)}


def _write_rest(config: ModelConfig) -> dict[str, Any]:
    del config
    return dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)  # left out they would be 0.1


_CONFIG = ConfigTable(
    model_type="gpt2",
    architecture="GPT2LMHeadModel",
    scalar_architecture="GPT2ForSequenceClassification",
    fields={
        "vocab_size": "vocab_size",
        "n_embd": "hidden_size",
        "n_inner": "intermediate_size",
        "n_layer": "num_layers",
        "n_head": ("num_heads", "num_kv_heads"),
        "head_dim": "head_dim",
        "n_positions": "max_positions",
        "layer_norm_epsilon": "norm_eps",
        "activation_function": "activation",
        "tie_word_embeddings": "tie_embeddings",
    },
    defaults={"layer_norm_epsilon": 1e-5, "activation_function": "gelu_new", "tie_word_embeddings": True},
    only={
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "reorder_and_upcast_attn": False,
        "add_cross_attention": False,
    },
    fixed={
        "learned_positions": True,
        "norm": "layer",
        "gated_mlp": False,
        "qkv_bias": True,
        "out_bias": True,
        "mlp_bias": True,
    },
    read_rest=_read_rest,
    write_rest=_write_rest,
)

GPT2 = make_family(_CONFIG, _TENSORS, _IGNORED)
