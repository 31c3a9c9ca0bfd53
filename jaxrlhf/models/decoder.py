"""The decoder: blocks stacked by a plain function, and the three functions that make it a `types.Model`.

Parameters are a nested dict with the names of the published checkpoints; those of the L blocks are stacked on a leading
axis, which `lax.scan` walks:

    embed_tokens/embedding [V, D]    layers/<block> [L, ...]    norm/scale [D]
    embed_positions/embedding [max_positions, D]                learned positions
    lm_head/kernel [V, D]            untied models              score/kernel [1, D]    reward and value models

Where layers are of several kinds, a round of the loop takes one of each, so that what tells them apart is known when
the program is compiled. `decoding.py` has the form that a loop of single tokens reads.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxrlhf.models.attention import make_mix
from jaxrlhf.models.cache import make_cache
from jaxrlhf.models.config import ComputeConfig, LayerKind, ModelConfig, Remat
from jaxrlhf.models.decoding import TURNED_HEAD, prepare, unrolls
from jaxrlhf.models.layers import Block, Seen
from jaxrlhf.models.linear import INIT_STD, Products, keep_projections
from jaxrlhf.models.lora_config import LoraConfig
from jaxrlhf.models.mix_kernels import keep_of_kernels
from jaxrlhf.models.norms import make_norm
from jaxrlhf.models.rotary import rotary_angles
from jaxrlhf.sharding.mesh import BATCH_AXES, constrain
from jaxrlhf.types import Head, KVCache, Model, ModelOutput, Params

BlockFn = Callable[[Params, jax.Array, KVCache | None, jax.Array | int], tuple[jax.Array, KVCache | None]]
"""(parameters of a block, hidden [B, T, D], cache, number of the layer) -> (hidden, cache)."""

Stream = tuple[jax.Array, KVCache | None]

_REMAT_POLICIES = {
    "dots": jax.checkpoint_policies.save_from_both_policies(keep_projections, keep_of_kernels),
    "full": None,
}


def make_model(config: ModelConfig, compute: ComputeConfig | None = None, lora: LoraConfig | None = None) -> Model:
    """The decoder as pure functions.

    Matrices of the blocks may have adapters beside them, see `models/lora.py`, and be kept in bfloat16 or 8 bits. `key`
    of `apply` is for the dropout of adapters; there is no other. `head` returns the weights as they are; the kernel
    casts what it reads.

    Args:
        config: the model.
        compute: how to compute it; None means `ComputeConfig()`.
        lora: scale and dropout of adapters; None where the parameters have none.

    Returns:
        `Model`; `apply` gives hidden states in the compute dtype, finite at padding too. It raises ValueError for
        adapters without `lora`. Learned positions beyond `max_positions` are that of the last row: callers see to it
        that there are none.
    """
    compute = ComputeConfig() if compute is None else compute

    def init_cache(batch: int, length: int, dtype: Any = None) -> KVCache:
        return make_cache(config, batch, length, compute.dtype if dtype is None else dtype, stacked=not unrolls())

    products = Products(compute.dtype)
    if lora is not None and lora.rank is not None:
        products = Products(compute.dtype, lora.scale, lora.dropout)
    return Model(
        apply=functools.partial(_apply, config, compute, products),
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
        Nested dict; see the head of this file. Matrices are normal with deviation 0.02, biases 0, norms 1, a score head
        0.
    """
    embed_key, layers_key, head_key = jax.random.split(key, 3)
    normal = jax.nn.initializers.normal(INIT_STD)
    table = (config.vocab_size, config.hidden_size)
    params: dict[str, Any] = {
        "embed_tokens": {"embedding": normal(embed_key, table, jnp.float32)},
        "layers": jax.vmap(functools.partial(_init_block, config))(jax.random.split(layers_key, config.num_layers)),
        "norm": make_norm(config, jnp.float32).init(key, jnp.zeros((1, config.hidden_size)))["params"],
    }
    if config.learned_positions:
        table_key, places = jax.random.fold_in(embed_key, 1), (config.max_positions, config.hidden_size)
        params["embed_positions"] = {"embedding": normal(table_key, places, jnp.float32)}
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
    products: Products,
    params: Params,
    tokens: jax.Array,
    *,
    positions: jax.Array,
    segment_ids: jax.Array,
    cache: KVCache | None = None,
    key: jax.Array | None = None,
    prefix_ids: jax.Array | None = None,
) -> ModelOutput:
    chex.assert_rank(tokens, 2)
    chex.assert_equal_shape([tokens, positions, segment_ids] + ([] if prefix_ids is None else [prefix_ids]))

    def seen(kind: LayerKind) -> Seen:
        mix = make_mix(config, compute, kind, segment_ids, positions, cache, prefix_ids)
        rotary = None if kind.rope_theta is None else rotary_angles(positions, kind, config.turned_dim)
        return Seen(rotary, mix)

    kinds = {kind: seen(kind) for kind in config.pattern}
    blocks = [_block_fn(config, products, key, kinds[kind]) for kind in config.pattern]
    loop = _Loop(compute.scan_unroll, compute.remat if cache is None else "none")
    hidden = constrain(_embed(config, compute.dtype, params, tokens, positions), BATCH_AXES, None, None)
    hidden, cache = _run_layers(blocks, params["layers"], (hidden, cache), loop)
    normed: Any = make_norm(config, compute.dtype).apply({"params": params["norm"]}, hidden)
    if cache is not None:
        cache = dataclasses.replace(cache, index=cache.index + tokens.shape[1])
    return ModelOutput(hidden=normed, cache=cache, aux={})


def _embed(config: ModelConfig, dtype: Any, params: Any, tokens: jax.Array, positions: jax.Array) -> jax.Array:
    hidden = params["embed_tokens"]["embedding"][tokens].astype(dtype)
    if config.embedding_scale != 1.0:
        hidden = hidden * jnp.asarray(config.embedding_scale, dtype)
    if config.learned_positions:
        hidden = hidden + params["embed_positions"]["embedding"][positions].astype(dtype)
    return hidden


class _Loop(NamedTuple):
    """How layers are run: `scan_unroll` and `remat` of `ComputeConfig`, the latter "none" where nothing is trained."""

    unroll: int
    remat: Remat


def _block_fn(config: ModelConfig, products: Products, key: Any, seen: Seen) -> BlockFn:
    module = Block(config, products)

    def block(params: Params, hidden: jax.Array, cache: KVCache | None, layer: jax.Array | int) -> Any:
        keys = {} if key is None else {"dropout": jax.random.fold_in(key, layer)}
        output: Any = module.apply({"params": params}, hidden, seen, cache, layer, rngs=keys)
        return constrain(output[0], BATCH_AXES, None, None), output[1]

    return block


def _recomputed(blocks: Sequence[BlockFn], remat: Remat, *, looped: bool) -> Sequence[BlockFn]:
    if remat == "none":
        return blocks
    # Within a loop XLA cannot undo the recomputation by sharing it with the forward pass; without one it would.
    return [jax.checkpoint(block, policy=_REMAT_POLICIES[remat], prevent_cse=not looped) for block in blocks]


def _run_layers(blocks: Sequence[BlockFn], layers: Any, stream: Stream, loop: _Loop) -> Stream:
    """Runs all layers, which take the blocks in turn."""
    if isinstance(layers, tuple):
        return _run_each(blocks, layers, stream, 0)
    if stream[1] is not None and isinstance(stream[1].keys, tuple):
        raise ValueError("parameters are stacked and the cache is not; apply Model.prepare to the parameters first")
    kinds = len(blocks)
    rounds, rest = divmod(jax.tree.leaves(layers)[0].shape[0], kinds)
    unroll = min(-(-loop.unroll // kinds), rounds)
    in_turn = _recomputed(blocks, loop.remat, looped=unroll < rounds)

    def body(stream: Any, round: Any) -> tuple[Any, None]:
        params, number = round
        parts = (params,)
        if kinds > 1:
            parts = tuple(jax.tree.map(lambda leaf, i=i: leaf[i], params) for i in range(kinds))
        return _run_each(in_turn, parts, stream, number * kinds), None

    # The cache is in the carry: as an input and output of the scan it would be copied.
    if rounds:
        numbers = jnp.arange(rounds, dtype=jnp.int32)
        params = layers
        if kinds > 1:  # an axis of length 1 would have a CPU copy all parameters
            params = jax.tree.map(lambda leaf: leaf[: rounds * kinds].reshape(rounds, kinds, *leaf.shape[1:]), layers)
        stream, _ = jax.lax.scan(body, stream, (params, numbers), unroll=unroll)
    last = tuple(jax.tree.map(lambda leaf, i=i: leaf[rounds * kinds + i], layers) for i in range(rest))
    return _run_each(_recomputed(blocks, loop.remat, looped=False), last, stream, rounds * kinds)


def _run_each(blocks: Sequence[BlockFn], layers: Sequence[Params], stream: Stream, first: jax.Array | int) -> Stream:
    """Runs layers one after another; the number of the first is a multiple of that of the blocks."""
    for number, params in enumerate(layers):
        stream = blocks[number % len(blocks)](params, *stream, first + number)
    return stream


def _head(config: ModelConfig, params: Params) -> Head:
    if config.scalar_head:
        return Head(weight=params["score"]["kernel"])
    options: dict[str, Any] = {"softcap": config.final_softcap}
    if TURNED_HEAD in params:
        return Head(weight=params[TURNED_HEAD], layout="dv", **options)
    table = params["embed_tokens"]["embedding"] if config.tie_embeddings else params["lm_head"]["kernel"]
    return Head(weight=table, **options)


def _init_block(config: ModelConfig, key: jax.Array) -> Params:
    # Shapes of parameters do not depend on the input, so one token will do, which sees itself and does not turn.
    hidden = jnp.zeros((1, 1, config.hidden_size))
    seen = Seen(None, jax.nn.dot_product_attention)
    return Block(config, Products(jnp.float32)).init(key, hidden, seen, None, 0)["params"]
