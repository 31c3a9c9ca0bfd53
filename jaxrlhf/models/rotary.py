"""Rotary position embeddings (Su et al. 2021), in the half-split layout of the published checkpoints."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxrlhf.models.config import LayerKind
from jaxrlhf.models.rope_config import LinearScaling, Llama3Scaling


def rotary_frequencies(kind: LayerKind, width: int) -> np.ndarray:
    """Angle that each pair of a head turns by from one position to the next.

    Args:
        kind: of the layer; `rope_theta` is not None.
        width: how many entries of a head turn, R.

    Returns:
        [R / 2] float32 array, falling from 1.
    """
    assert kind.rope_theta is not None, "layers without rotary positions turn nothing"
    exponents = np.arange(0, width, 2, dtype=np.float64) / width
    frequencies = kind.rope_theta**-exponents
    match kind.rope_scaling:
        case None:
            pass
        case LinearScaling(factor=factor):
            frequencies = frequencies / factor
        case Llama3Scaling() as scaling:
            frequencies = _blend(frequencies, scaling)
    return frequencies.astype(np.float32)


def rotary_angles(positions: jax.Array, kind: LayerKind, width: int) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine of each pair's angle at each position.

    Args:
        positions: [B, T] int array.
        kind: of the layer; `rope_theta` is not None.
        width: how many entries of a head turn, R.

    Returns:
        Cosines and sines, both [B, T, 1, R / 2] float32; the axis of 1 is that of the heads.
    """
    frequencies = jnp.asarray(rotary_frequencies(kind, width))
    angles = positions[:, :, None, None].astype(jnp.float32) * frequencies[None, None, None, :]
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Turns the pairs (i, i + R / 2) among the first R entries of each head by their angles, in float32.

    Args:
        x: [B, T, H, Dh] queries or keys.
        cos: [B, T, 1, R / 2] float32, from `rotary_angles`; R is Dh at most.
        sin: [B, T, 1, R / 2] float32, likewise.

    Returns:
        [B, T, H, Dh] array of the dtype of `x`; entries from R on are as they were.
    """
    turned, rest = x[..., : 2 * cos.shape[-1]].astype(jnp.float32), x[..., 2 * cos.shape[-1] :]
    first, second = jnp.split(turned, 2, axis=-1)
    parts = [first * cos - second * sin, second * cos + first * sin]
    return jnp.concatenate([*(part.astype(x.dtype) for part in parts), rest], axis=-1)


def _blend(frequencies: np.ndarray, scaling: Llama3Scaling) -> np.ndarray:
    turns = scaling.original_max_positions * frequencies / (2 * np.pi)  # full turns within the original context
    kept = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    kept = np.clip(kept, 0.0, 1.0)  # 1: fast, as it was; 0: slow, divided
    return frequencies * (kept + (1.0 - kept) / scaling.factor)
