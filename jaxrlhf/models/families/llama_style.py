"""Names that the families after Llama share: keys of the config, tensors, and what of older files is ignored.

A model has the tensors whose paths are among its parameters, so one table serves those with biases or norms of queries
and keys, and those without.
"""

from __future__ import annotations

from jaxrlhf.models.families.family import Tensor

FIELDS: dict[str, str | tuple[str, ...]] = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "num_key_value_heads": "num_kv_heads",
    "head_dim": "head_dim",
    "max_position_embeddings": "max_positions",
    "rms_norm_eps": "norm_eps",
    "tie_word_embeddings": "tie_embeddings",
}

DEFAULTS = {"rms_norm_eps": 1e-6, "hidden_act": "silu", "tie_word_embeddings": False, "attention_bias": False}

IGNORED = (r"rotary_emb\.inv_freq$",)
"""Older files carry this buffer, which follows from the config."""

ENDS = (
    Tensor("model.embed_tokens.weight", "embed_tokens/embedding"),
    Tensor("model.norm.weight", "norm/scale"),
    Tensor("lm_head.weight", "lm_head/kernel"),
    Tensor("score.weight", "score/kernel"),
)
"""What is not in a block."""

NORMS = tuple(
    Tensor(f"model.layers.{{layer}}.{name}.weight", f"layers/{name}/scale")
    for name in (
        "input_layernorm",
        "post_attention_layernorm",
        "pre_feedforward_layernorm",
        "post_feedforward_layernorm",
    )
)


def projection(module: str, name: str) -> tuple[Tensor, Tensor]:
    """The rows of a projection: its matrix and its bias.

    Args:
        module: `self_attn` or `mlp`.
        name: of the projection.

    Returns:
        Two rows.
    """
    published, path = f"model.layers.{{layer}}.{module}.{name}", f"layers/{module}/{name}"
    weight = Tensor(f"{published}.weight", f"{path}/kernel", transpose=True)
    return weight, Tensor(f"{published}.bias", f"{path}/bias")


TENSORS = (
    *ENDS,
    *NORMS,
    *(row for name in ("q_proj", "k_proj", "v_proj", "o_proj") for row in projection("self_attn", name)),
    Tensor("model.layers.{layer}.self_attn.q_norm.weight", "layers/self_attn/q_norm/scale"),
    Tensor("model.layers.{layer}.self_attn.k_norm.weight", "layers/self_attn/k_norm/scale"),
    *(row for name in ("gate_proj", "up_proj", "down_proj") for row in projection("mlp", name)),
)
