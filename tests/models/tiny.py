"""A tiny decoder with random parameters, for the tests of this folder and of export."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrlhf.models.config import ModelConfig
from jaxrlhf.models.decoder import init_params
from jaxrlhf.types import Model

STORIES = Path(__file__).parents[1] / "assets" / "stories260k-llama"

TINY = ModelConfig(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    max_positions=64,
)
SCALAR = dataclasses.replace(TINY, scalar_head=True)


@functools.partial(jax.jit, static_argnums=(0, 1))
def random_params(config: ModelConfig, seed: int = 0) -> Any:
    """Parameters with noise on every leaf, so that norms and score heads are not all ones or zeros."""
    leaves, tree = jax.tree.flatten(init_params(config, jax.random.key(seed)))
    keys = list(jax.random.split(jax.random.key(seed + 1), len(leaves)))
    return tree.unflatten([x + 0.1 * jax.random.normal(key, x.shape) for key, x in zip(keys, leaves, strict=True)])


def random_tokens(rows: int, length: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).integers(0, TINY.vocab_size, (rows, length)), jnp.int32)


def logits(model: Model, params: Any, tokens: jax.Array, segment_ids: Any = None) -> jax.Array:
    """[B, T, V] of a full forward; positions count within each segment."""
    segments = np.ones(tokens.shape, np.int32) if segment_ids is None else np.asarray(segment_ids, np.int32)
    return _logits(model, params, tokens, positions_of(segments), segments)


@functools.partial(jax.jit, static_argnums=0)
def _logits(model: Model, params: Any, tokens: jax.Array, positions: jax.Array, segment_ids: jax.Array) -> jax.Array:
    output = model.apply(params, tokens, positions=positions, segment_ids=segment_ids)
    return output.hidden @ model.head(params).weight.T


def positions_of(segment_ids: np.ndarray) -> jax.Array:
    """[B, T] position of each token within its segment, from 0."""
    positions = np.zeros(segment_ids.shape, np.int32)
    for row, column in np.ndindex(segment_ids.shape):
        if column and segment_ids[row, column] == segment_ids[row, column - 1]:
            positions[row, column] = positions[row, column - 1] + 1
    return jnp.asarray(positions)
