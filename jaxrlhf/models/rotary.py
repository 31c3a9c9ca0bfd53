"""Rotary position embeddings (Su et al. 2021), in the half-split layout of the published checkpoints."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxrlhf.models.config import LinearScaling, Llama3Scaling, ModelConfig


def rotary_frequencies(config: ModelConfig) -> np.ndarray:
    """Angle that each pair of a head turns by from one position to the next.

    Args:
        config: the model.

    Returns:
        [Dh / 2] float32 array, falling from 1.
    """
    exponents = np.arange(0, config.head_dim, 2, dtype=np.float64) / config.head_dim
    frequencies = config.rope_theta**-exponents
    match config.rope_scaling:
        case None:
            pass
        case LinearScaling(factor=factor):
            frequencies = frequencies / factor
        case Llama3Scaling() as scaling:
            frequencies = _blend(frequencies, scaling)
    return frequencies.astype(np.float32)


def rotary_angles(positions: jax.Array, config: ModelConfig) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine of each pair's angle at each position.

    Args:
        positions: [B, T] int array.
        config: the model.

    Returns:
        Cosines and sines, both [B, T, 1, Dh / 2] float32; the axis of 1 is that of the heads.
    """
    frequencies = jnp.asarray(rotary_frequencies(config))
    angles = positions[:, :, None, None].astype(jnp.float32) * frequencies[None, None, None, :]
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Turns the pairs (i, i + Dh / 2) of each head by their angles, in float32.

    Args:
        x: [B, T, H, Dh] queries or keys.
        cos: [B, T, 1, Dh / 2] float32, from `rotary_angles`.
        sin: [B, T, 1, Dh / 2] float32, likewise.

    Returns:
        [B, T, H, Dh] array of the dtype of `x`.
    """
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


def _blend(frequencies: np.ndarray, scaling: Llama3Scaling) -> np.ndarray:
    turns = scaling.original_max_positions * frequencies / (2 * np.pi)  # full turns within the original context
    kept = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    kept = np.clip(kept, 0.0, 1.0)  # 1: fast, as it was; 0: slow, divided
    return frequencies * (kept + (1.0 - kept) / scaling.factor)
