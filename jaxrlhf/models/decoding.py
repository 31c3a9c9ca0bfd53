"""Parameters in the form that a loop of single tokens reads fastest."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxrlhf.models.config import ComputeConfig, ModelConfig
from jaxrlhf.sharding.mesh import target_platform
from jaxrlhf.types import Params

TURNED_HEAD = "unembedding"
"""Name of the unembedding as [D, V]; it stands in place of `lm_head`, or beside a tied embedding."""


def prepare(config: ModelConfig, compute: ComputeConfig, params: Params) -> Params:
    """Parameters for decoding: matrices in the dtype that products have, so that a step reads no more than it must.

    But for TPUs the layers become a tuple of trees, since a slice of stacked weights would be copied at every step. For
    a CPU the unembedding is turned, which few rows multiply 1.5 times as fast. The numbers that `apply` computes are
    the same.

    Args:
        config: the model.
        compute: how it is computed.
        params: parameters as they are trained.

    Returns:
        Parameters that `apply` and `head` take.
    """

    def cast(path: Any, leaf: jax.Array) -> jax.Array:
        # Norms are computed in float32, and matrices in 8 bits stay so.
        whole = _is_norm(path) or path[-1].key == "kernel_scale" or leaf.dtype == jnp.int8
        return leaf if whole else leaf.astype(compute.dtype)

    params = jax.tree_util.tree_map_with_path(cast, params)
    return _unrolled(config, params) if unrolls() else params


def _is_norm(path: Any) -> bool:
    return path[-2].key.endswith("norm")


def unrolls() -> bool:
    """Whether each layer has its own arrays while decoding, parameters and cache alike."""
    return target_platform() != "tpu"  # whose compiler reads slices where they are


def _unrolled(config: ModelConfig, params: Params) -> Params:
    layers = params["layers"]
    blocks = tuple(jax.tree.map(lambda leaf, i=i: leaf[i], layers) for i in range(config.num_layers))
    params = {**params, "layers": blocks}
    if config.scalar_head or target_platform() != "cpu":
        return params
    table = params["embed_tokens"]["embedding"] if config.tie_embeddings else params.pop("lm_head")["kernel"]
    return {**params, TURNED_HEAD: jnp.swapaxes(table, 0, 1)}
