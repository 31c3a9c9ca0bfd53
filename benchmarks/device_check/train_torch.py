"""The section `train`, its second half: the same step by transformers and torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.device_check import on_torch
from benchmarks.device_check.ceilings import Ceilings
from benchmarks.device_check.contest import Contestant, Runner, hold
from benchmarks.device_check.shapes import Shapes, Training
from benchmarks.device_check.sheet import Sheet
from benchmarks.device_check.train import row_of, worth_of
from jaxrlhf.models.config import ModelConfig

WAYS = {
    "transformers, checkpointing": ("bfloat16, weights float32", True),
    "transformers, nothing recomputed": ("bfloat16, weights float32", False),
}
"""Way -> dtype as a row says it, and whether activations are recomputed."""


def measure(sheet: Sheet, shapes: Shapes, ceilings: Ceilings | None) -> None:
    """Writes a row for each way: sdpa attention, fused AdamW, autocast to bfloat16, clipped to norm 1 as ours is."""
    for way, (dtype, checkpointing) in WAYS.items():
        contestant = Contestant(
            row=row_of(shapes.training, dtype, way),
            prepare=lambda checkpointing=checkpointing: _prepare(shapes.training, checkpointing),
            worth=worth_of(shapes.training, ceilings),
        )
        hold(sheet, [contestant], rounds=5)  # one at a time: each has a state of its own


def make_model(config: ModelConfig, dtype: torch.dtype) -> Any:
    """A random model of these sizes on the device."""
    published: Any = LlamaConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        max_position_embeddings=config.max_positions,
        tie_word_embeddings=config.tie_embeddings,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    with torch.device(on_torch.DEVICE):
        model: Any = LlamaForCausalLM._from_config(published, attn_implementation="sdpa", dtype=dtype)
    return model


def _prepare(training: Training, checkpointing: bool) -> Runner:
    model = make_model(training.model, torch.float32).train()
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.config.use_cache = False
    fused = on_torch.DEVICE == "cuda"
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, betas=(0.9, 0.95), weight_decay=0.1, fused=fused)
    size = (training.rows, training.length)
    tokens = torch.randint(3, training.model.vocab_size, size, device=on_torch.DEVICE)
    return on_torch.ready(_step(model, optimizer, tokens))


def _step(model: Any, optimizer: torch.optim.Optimizer, tokens: torch.Tensor) -> Callable[[], Any]:
    def step() -> torch.Tensor:
        with torch.autocast(on_torch.DEVICE, dtype=torch.bfloat16):
            loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss

    return step
