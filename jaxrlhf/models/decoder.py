"""The decoder: blocks stacked by a plain function, and the three functions that make it a `types.Model`.

Parameters are a nested dict with the names of the published checkpoints; those of the L blocks are stacked on a leading
axis, which `lax.scan` walks:

    embed_tokens/embedding [V, D]    layers/<block> [L, ...]    norm/scale [D]
    lm_head/kernel [V, D]            untied models              score/kernel [1, D]    reward and value models

`decoding.py` has the form that a loop of single tokens reads.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp

from jaxrlhf.models.attention import Mix, make_mix
from jaxrlhf.models.attention_backends import keep_of_kernels
from jaxrlhf.models.cache import make_cache
from jaxrlhf.models.config import ComputeConfig, ModelConfig
from jaxrlhf.models.decoding import TURNED_HEAD, prepare, unrolls
from jaxrlhf.models.layers import INIT_STD, Block, RMSNorm
from jaxrlhf.models.rotary import rotary_angles
from jaxrlhf.sharding.mesh import BATCH_AXES, constrain
from jaxrlhf.types import Head, KVCache, Model, ModelOutput, Params

BlockFn = Callable[[Params, jax.Array, KVCache | None, jax.Array | int], tuple[jax.Array, KVCache | None]]
"""(parameters of a block, hidden [B, T, D], cache, number of the layer) -> (hidden, cache)."""

_REMAT_POLICIES = {
    "dots": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable, keep_of_kernels
    ),
    "full": None,
}


def make_model(config: ModelConfig, compute: ComputeConfig | None = None) -> Model:
    """The decoder as pure functions.

    `apply` takes `key` because models may have dropout; this one has none. `head` returns the weights as they are; the
    kernel casts what it reads.

    Args:
        config: the model.
        compute: how to compute it; None means `ComputeConfig()`.

    Returns:
        `Model`; `apply` gives hidden states in the compute dtype, finite at padding too.
    """
    compute = ComputeConfig() if compute is None else compute

    def init_cache(batch: int, length: int, dtype: Any = None) -> KVCache:
        return make_cache(config, batch, length, compute.dtype if dtype is None else dtype, stacked=not unrolls())

    return Model(
        apply=functools.partial(_apply, config, compute),
        head=functools.partial(_head, config),
        init_cache=init_cache,
        prepare=functools.partial(prepare, config, compute),
    )


def init_params(config: ModelConfig, key: jax.Array) -> Params:
    """Fresh float32 parameters; under `jax.jit` with `out_shardings` they are made where they stay.

    Args:
        config: the model.
        key: consumed.

    Returns:
        Nested dict; see the head of this file. Matrices are normal with deviation 0.02, norms 1, a score head 0.
    """
    embed_key, layers_key, head_key = jax.random.split(key, 3)
    normal = jax.nn.initializers.normal(INIT_STD)
    table = (config.vocab_size, config.hidden_size)
    params: dict[str, Any] = {
        "embed_tokens": {"embedding": normal(embed_key, table, jnp.float32)},
        "layers": jax.vmap(functools.partial(_init_block, config))(jax.random.split(layers_key, config.num_layers)),
        "norm": {"scale": jnp.ones((config.hidden_size,), jnp.float32)},
    }
    if config.scalar_head:
        params["score"] = {"kernel": jnp.zeros((1, config.hidden_size), jnp.float32)}
    elif not config.tie_embeddings:
        params["lm_head"] = {"kernel": normal(head_key, table, jnp.float32)}
    return params


def param_shapes(config: ModelConfig) -> Params:
    """Shapes and dtypes of `init_params`, without computing anything.

    Args:
        config: the model.

    Returns:
        Nested dict of `jax.ShapeDtypeStruct`.
    """
    return jax.eval_shape(lambda: init_params(config, jax.random.key(0)))


def _apply(
    config: ModelConfig,
    compute: ComputeConfig,
    params: Params,
    tokens: jax.Array,
    *,
    positions: jax.Array,
    segment_ids: jax.Array,
    cache: KVCache | None = None,
    key: jax.Array | None = None,
    prefix_ids: jax.Array | None = None,
) -> ModelOutput:
    del key  # no dropout
    chex.assert_rank(tokens, 2)
    chex.assert_equal_shape([tokens, positions, segment_ids] + ([] if prefix_ids is None else [prefix_ids]))
    mix = make_mix(config, compute, segment_ids, cache, prefix_ids)
    block = _block_fn(config, compute, positions, mix, training=cache is None)
    hidden = params["embed_tokens"]["embedding"][tokens].astype(compute.dtype)
    hidden = constrain(hidden, BATCH_AXES, None, None)
    hidden, cache = _run_layers(block, params["layers"], hidden, cache, compute.scan_unroll)
    normed: Any = RMSNorm(config.rms_eps, compute.dtype).apply({"params": params["norm"]}, hidden)
    if cache is not None:
        cache = dataclasses.replace(cache, index=cache.index + tokens.shape[1])
    return ModelOutput(hidden=normed, cache=cache, aux={})


def _block_fn(config: ModelConfig, compute: ComputeConfig, positions: jax.Array, mix: Mix, training: bool) -> BlockFn:
    rotary = rotary_angles(positions, config)
    module = Block(config, compute.dtype)

    def block(params: Params, hidden: jax.Array, cache: KVCache | None, layer: jax.Array | int) -> Any:
        output: Any = module.apply({"params": params}, hidden, rotary, mix, cache, layer)
        return constrain(output[0], BATCH_AXES, None, None), output[1]

    if compute.remat == "none" or not training:
        return block
    # Within a loop XLA cannot undo the recomputation by sharing it with the forward pass; without one it would.
    looped = compute.scan_unroll < config.num_layers
    return jax.checkpoint(block, policy=_REMAT_POLICIES[compute.remat], prevent_cse=not looped)


def _run_layers(
    block: BlockFn, layers: Any, hidden: jax.Array, cache: KVCache | None, unroll: int
) -> tuple[jax.Array, KVCache | None]:
    if isinstance(layers, tuple):
        for number, params in enumerate(layers):
            hidden, cache = block(params, hidden, cache, number)
        return hidden, cache
    if cache is not None and isinstance(cache.keys, tuple):
        raise ValueError("parameters are stacked and the cache is not; apply Model.prepare to the parameters first")

    def body(carry: Any, layer: Any) -> tuple[Any, None]:
        (hidden, cache), (params, number) = carry, layer
        return block(params, hidden, cache, number), None

    # The cache is in the carry: as an input and output of the scan it would be copied.
    count = jax.tree.leaves(layers)[0].shape[0]
    numbers = jnp.arange(count, dtype=jnp.int32)
    (hidden, cache), _ = jax.lax.scan(body, (hidden, cache), (layers, numbers), unroll=min(unroll, count))
    return hidden, cache


def _head(config: ModelConfig, params: Params) -> Head:
    if config.scalar_head:
        return Head(weight=params["score"]["kernel"])
    if TURNED_HEAD in params:
        return Head(weight=params[TURNED_HEAD], layout="dv")
    return Head(weight=params["embed_tokens"]["embedding"] if config.tie_embeddings else params["lm_head"]["kernel"])


def _init_block(config: ModelConfig, key: jax.Array) -> Params:
    # Shapes of parameters do not depend on the input, so one token will do.
    hidden = jnp.zeros((1, 1, config.hidden_size))
    rotary = rotary_angles(jnp.zeros((1, 1), jnp.int32), config)
    return Block(config, jnp.float32).init(key, hidden, rotary, jax.nn.dot_product_attention, None, 0)["params"]
