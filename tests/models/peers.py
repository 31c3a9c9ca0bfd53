"""Tiny random models of transformers with torch, a few for each family, and what they say of the same tokens."""

from pathlib import Path
from typing import Any

import numpy as np

WORDS = 96
WINDOW = 5  # shorter than any sequence here

BASE: dict[str, Any] = {
    "vocab_size": WORDS,
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
LINEAR = {"rope_type": "linear", "factor": 4.0}
GEMMA = {"sliding_window": WINDOW, "head_dim": 16, "query_pre_attn_scalar": 24, "hidden_size": 24}
NEOX = {"num_key_value_heads": None}
SLIDING, FULL = "sliding_attention", "full_attention"

PEERS: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 4},
    "llama tied, one key head, narrow heads": {
        "tie_word_embeddings": True,
        "num_key_value_heads": 1,
        "head_dim": 4,
    },
    "llama with llama3 scaling": {"num_hidden_layers": 3, "num_attention_heads": 8, "rope_parameters": LLAMA3},
    "llama with biases and linear scaling": {
        "attention_bias": True,
        "mlp_bias": True,
        "rope_parameters": LINEAR | {"rope_theta": 10000.0},
        "rms_norm_eps": 1e-2,
    },
    "mistral with a window": {"sliding_window": WINDOW},
    "mistral without, wide heads": {"sliding_window": None, "head_dim": 16, "tie_word_embeddings": True},
    "qwen2": {"tie_word_embeddings": True, "rope_parameters": {"rope_type": "default", "rope_theta": 100.0}},
    "qwen2 with windows above": {
        "use_sliding_window": True,
        "sliding_window": WINDOW,
        "max_window_layers": 1,
    },
    "qwen3": {"head_dim": 16},
    "qwen3 with biases and windows": {
        "num_hidden_layers": 3,
        "head_dim": 8,
        "attention_bias": True,
        "use_sliding_window": True,
        "sliding_window": WINDOW,
        "layer_types": [SLIDING, FULL, SLIDING],
    },
    "gemma2": GEMMA | {"attn_logit_softcapping": 3.0, "final_logit_softcapping": 5.0},
    "gemma2 odd, without caps": GEMMA
    | {"num_hidden_layers": 3, "attn_logit_softcapping": None, "final_logit_softcapping": None, "attention_bias": True},
    "gemma3_text": GEMMA | {"num_hidden_layers": 3, "layer_types": [SLIDING, SLIDING, FULL]},
    "gemma3_text with a remainder and scaling": GEMMA
    | {
        "num_hidden_layers": 3,
        "layer_types": [SLIDING, FULL, SLIDING],
        "final_logit_softcapping": 5.0,
        "rope_parameters": {FULL: LINEAR | {"rope_theta": 1e5}, SLIDING: {"rope_type": "default", "rope_theta": 100.0}},
    },
    "gpt2": {},
    "gpt2 untied, another MLP and activation": {
        "n_inner": 40,
        "tie_word_embeddings": False,
        "activation_function": "gelu",
        "layer_norm_epsilon": 1e-2,
    },
    "gpt_neox": NEOX | {"num_attention_heads": 2},
    "gpt_neox in sequence, without biases": NEOX
    | {
        "use_parallel_residual": False,
        "attention_bias": False,
        "hidden_act": "gelu_fast",
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.5},
    },
    "phi3": {"num_key_value_heads": 4},
    "phi3 in part, with a window": {
        "sliding_window": WINDOW,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
    },
    "olmo2": {},
    "olmo2 with biases, one key head": {
        "num_key_value_heads": 1,
        "attention_bias": True,
        "tie_word_embeddings": True,
    },
}
"""Name, of which the first word is the `model_type` -> what is not as in `BASE`. All odd options of each are there."""


def make_peer(name: str, *, scalar: bool = False) -> Any:
    """A random torch model. Norms and biases are not as they start: ones and zeros would hide what is misplaced.

    Args:
        name: of `PEERS`.
        scalar: whether it has a score a token instead of words.

    Returns:
        Torch model in evaluation mode.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    torch.manual_seed(0)
    config = AutoConfig.for_model(name.split()[0], **(BASE | PEERS[name]), **({"num_labels": 1} if scalar else {}))
    auto = AutoModelForSequenceClassification if scalar else AutoModelForCausalLM
    model = auto.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for tensor in model.parameters():
            if tensor.ndim == 1:
                tensor.add_(0.3 * torch.randn_like(tensor))
    return model


def save_peer(model: Any, folder: Path) -> Path:
    """Writes a torch model as transformers does, without what keeps a random one from being saved."""
    model.generation_config = type(model.generation_config)() if hasattr(model, "generation_config") else None
    model.save_pretrained(folder)
    return folder


def peer_logits(model: Any, tokens: np.ndarray, segment_ids: np.ndarray) -> np.ndarray:
    """What a torch model says where it sees one sequence of each row at a time, the rest being padding to it.

    Args:
        model: torch model.
        tokens: [B, T] int array.
        segment_ids: [B, T] int array, 0 at padding.

    Returns:
        [B, T, V] array, 0 at padding.
    """
    import torch

    found = np.zeros((*tokens.shape, WORDS), np.float32)
    for segment in range(1, segment_ids.max() + 1):
        mask = segment_ids == segment
        places = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
        given = {"attention_mask": torch.tensor(mask).long(), "position_ids": torch.tensor(places)}
        with torch.no_grad():
            logits = model(torch.tensor(tokens).long(), **given).logits.numpy()
        found = np.where(mask[:, :, None], logits, found)
    return found
