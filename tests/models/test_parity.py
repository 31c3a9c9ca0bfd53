"""The decoder against the Llama of transformers, on tiny random models."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxrlhf.models.load import load_policy
from tests.models.tiny import logits

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.parity

BASE = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
CONFIGS = {
    "every head its own keys": {},
    "two heads share keys": {"num_key_value_heads": 2},
    "all heads share keys": {"num_key_value_heads": 1},
    "tied": {"tie_word_embeddings": True, "num_key_value_heads": 2},
    "wide heads": {"head_dim": 16},
    "narrow heads, tied": {"head_dim": 4, "tie_word_embeddings": True, "num_key_value_heads": 1},
    "llama3 scaling": {"rope_parameters": LLAMA3},
    "linear scaling": {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}},
    "other base and epsilon": {"rope_parameters": {"rope_type": "default", "rope_theta": 100.0}, "rms_norm_eps": 1e-2},
    "deep": {"num_hidden_layers": 5, "num_attention_heads": 8, "num_key_value_heads": 2},
}


@pytest.fixture(params=list(CONFIGS), ids=lambda name: name.replace(" ", "-"))
def peer(request, tmp_path):
    """A random torch model, and the folder that it was saved to."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**(BASE | CONFIGS[request.param]))).eval()
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if "norm" in name:  # ones would hide a norm that is in the wrong place
                tensor.add_(0.3 * torch.randn_like(tensor))
    model.save_pretrained(tmp_path)
    return model, tmp_path


def test_logits_equal_those_of_transformers_under_padding_on_either_side(peer):
    model, folder = peer
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 96, (3, 24))
    mask = np.ones((3, 24), np.int64)
    mask[1, :7] = 0  # padded on the left
    mask[2, 15:] = 0  # padded on the right
    positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
    with torch.no_grad():
        expected = model(
            torch.tensor(tokens), attention_mask=torch.tensor(mask), position_ids=torch.tensor(positions)
        ).logits.numpy()
    loaded = load_policy(folder)
    found = np.asarray(logits(loaded.model, loaded.params, jnp.asarray(tokens, jnp.int32), mask))
    real = mask.astype(bool)
    np.testing.assert_allclose(found[real], expected[real], atol=1e-4, rtol=1e-4)
