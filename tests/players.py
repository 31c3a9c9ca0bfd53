"""A tiny decoder as policy, critic and scorer, for tests in which tokens must see each other."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrlhf.models.config import ModelConfig
from jaxrlhf.models.decoder import make_model, param_shapes
from jaxrlhf.types import PromptBatch
from tests.fakes import prompt_batch

CONFIG = ModelConfig(
    vocab_size=40,
    hidden_size=16,
    intermediate_size=24,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    max_positions=64,
)
EOS = 3
POLICY = make_model(CONFIG)
SCORER = make_model(dataclasses.replace(CONFIG, scalar_head=True))


def player_params(scalar: bool = False, seed: int = 0) -> Any:
    """Parameters with which distributions are far from uniform and scores far from 0."""
    rng = np.random.default_rng(seed)
    shapes = param_shapes(dataclasses.replace(CONFIG, scalar_head=scalar))
    return jax.tree.map(lambda leaf: jnp.asarray(0.5 * rng.normal(size=leaf.shape), jnp.float32), shapes)


def random_prompts(count: int, width: int = 5, seed: int = 0) -> PromptBatch:
    """Prompts of 1 to `width` random tokens."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, width + 1, count)
    return prompt_batch([rng.integers(4, CONFIG.vocab_size, length) for length in lengths], width)


def all_equal(left: Any, right: Any) -> bool:
    """Whether two trees hold the same bits."""
    return all(jnp.array_equal(a, b) for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True))
