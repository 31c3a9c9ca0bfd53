"""Random models of the sections `train`, `generate` and `iterations`, and batches of random tokens for them."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrlhf.models.config import ModelConfig
from jaxrlhf.models.decoder import init_params, param_shapes
from jaxrlhf.optim import adamw_direction
from jaxrlhf.types import PairBatch, Params, PromptBatch, TokenBatch

OPTIMIZER = adamw_direction(b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.1)


def hyper(**more: float) -> dict[str, jax.Array]:
    """The hyper-parameters of every train step, and more."""
    numbers = {"learning_rate": 1e-5, "max_grad_norm": 1.0, **more}
    return {name: jnp.float32(value) for name, value in numbers.items()}


def random_params(config: ModelConfig, seed: int = 0) -> Params:
    """Fresh float32 parameters, made on the device; a score head that is not zero."""
    params = jax.jit(functools.partial(init_params, config))(jax.random.key(seed))
    if config.scalar_head:
        kernel = params["score"]["kernel"]
        params["score"]["kernel"] = 0.02 * jax.random.normal(jax.random.key(seed), kernel.shape)
    return jax.block_until_ready(params)


def parameter_count(config: ModelConfig) -> int:
    """Parameters of a model, a tied embedding counted once."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(param_shapes(config)))


def size_of(config: ModelConfig) -> str:
    """Its parameters as a row says them: 1.24B, 36k."""
    count = parameter_count(config)
    return f"{count / 1e9:.2f}B" if count >= 1e8 else f"{count / 1e3:.0f}k"


def cache_bytes(config: ModelConfig, bytes_each: int) -> int:
    """Bytes of the keys and values of one token in all layers."""
    return 2 * config.num_layers * config.num_kv_heads * config.head_dim * bytes_each


def sequences(config: ModelConfig, *shape: int, prompt: int = 0) -> TokenBatch:
    """Full sequences [..., T] of random tokens; a loss reads the targets after the prompt."""
    ids = np.random.default_rng(0).integers(3, config.vocab_size, (*shape[:-1], shape[-1] + 1), np.int32)
    tokens, columns = ids[..., :-1], None
    mask = np.zeros(tokens.shape, bool)
    mask[..., max(0, prompt - 1) :] = True
    positions = np.broadcast_to(np.arange(shape[-1], dtype=np.int32), tokens.shape)
    if prompt:
        read = np.arange(prompt - 1, shape[-1], dtype=np.int32)
        columns = jnp.asarray(np.broadcast_to(read, (*shape[:-1], len(read))))
    return TokenBatch(
        tokens=jnp.asarray(tokens),
        targets=jnp.asarray(ids[..., 1:]),
        mask=jnp.asarray(mask),
        positions=jnp.asarray(positions),
        segment_ids=jnp.ones(tokens.shape, jnp.int32),
        columns=columns,
    )


def pairs(config: ModelConfig, count: int, length: int, prompt: int) -> PairBatch:
    """Pairs of answers to the same prompt."""
    answers = sequences(config, count, 2, length, prompt=prompt)
    tokens = answers.tokens.at[:, 1, :prompt].set(answers.tokens[:, 0, :prompt])
    fields: dict[str, Any] = {**vars(answers), "tokens": tokens}
    return PairBatch(answers=TokenBatch(**fields), margin=jnp.zeros(count))


def prompts(config: ModelConfig, count: int, length: int) -> PromptBatch:
    """Prompts of random tokens, none padded."""
    tokens = np.random.default_rng(1).integers(3, config.vocab_size, (count, length), np.int32)
    return PromptBatch(
        tokens=jnp.asarray(tokens), segment_ids=jnp.ones((count, length), jnp.int32), row_ids=jnp.arange(count)
    )
