"""Parameters that are not trained, in fewer bits: bfloat16, or matrices in 8 bits with a scale a column."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxrlhf.models.lora_config import BaseDType
from jaxrlhf.types import Params

SCORE = "score"
"""The head of reward and value models, whose dtype is float32 in every form."""

_MOST = 127  # -128 stays unused, so that rounding is the same on both sides of 0


def quantize(kernel: Any) -> tuple[jax.Array, jax.Array]:
    """A matrix in 8 bits: kernel ~ quantized * scale, with an error of half a scale at most.

    Args:
        kernel: [..., in, out] float array.

    Returns:
        [..., in, out] int8 array, and [..., out] float32 array: the largest size in each column over 127.
    """
    kernel = jnp.asarray(kernel, jnp.float32)
    largest = jnp.max(jnp.abs(kernel), axis=-2, keepdims=True)
    scale = jnp.where(largest > 0, largest / _MOST, 1.0)  # a column of zeros is one at any scale
    return jnp.round(kernel / scale).astype(jnp.int8), jnp.squeeze(scale, axis=-2)


def dequantize(quantized: Any, scale: Any) -> jax.Array:
    """The inverse of `quantize`, up to its rounding: [..., in, out] float32."""
    return jnp.asarray(quantized, jnp.float32) * jnp.expand_dims(jnp.asarray(scale), -2)


def keep_as(params: Params, dtype: BaseDType) -> Params:
    """Parameters in the dtype that a base is kept in.

    Args:
        params: nested dict, in whatever dtype they are kept now.
        dtype: "float32"; "bfloat16"; or "int8", in which the matrices of blocks are kept in 8 bits, with `kernel_scale`
            beside them, and all else in bfloat16. A score head is float32 always: it is small.

    Returns:
        Nested dict.
    """
    wide = as_float32(params)
    rest = jnp.float32 if dtype == "float32" else jnp.bfloat16
    kept = {name: value if name == SCORE else _rounded(value, rest) for name, value in wide.items()}
    return {**kept, "layers": _quantized(wide["layers"])} if dtype == "int8" else kept


def _rounded(tree: Any, dtype: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.astype(dtype), tree)


def as_float32(params: Params) -> Params:
    """The inverse of `keep_as`, up to its rounding; adapters stay as they are."""
    if not isinstance(params, Mapping):
        return params.astype(jnp.float32)
    if "kernel_scale" in params:
        rest = {name: value for name, value in params.items() if name != "kernel_scale"}
        return as_float32({**rest, "kernel": dequantize(params["kernel"], params["kernel_scale"])})
    return {name: as_float32(value) for name, value in params.items()}


def _quantized(layers: Mapping[str, Any]) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for name, value in layers.items():
        if isinstance(value, Mapping):
            kept[name] = _quantized(value)
        elif name == "kernel":
            kept[name], kept["kernel_scale"] = quantize(value)
        else:
            kept[name] = value.astype(jnp.bfloat16)
    return kept
