"""Low-rank adapters (Hu et al. 2022): which matrices get them, what they start from, and the sum of both.

Adapters are a tree of their own with the paths of the parameters that they stand beside:

    layers/<...>/q_proj/lora_a [L, in, r]    layers/<...>/q_proj/lora_b [L, r, out]

`ops.trees.overlay(base, adapters)` are parameters that `make_model(config, compute, lora)` takes; there may be many
adapters over one base.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxrlhf.models.config import ModelConfig
from jaxrlhf.models.decoder import param_shapes
from jaxrlhf.models.folder import FAMILIES
from jaxrlhf.models.lora_config import LoraConfig
from jaxrlhf.models.quantized import as_float32
from jaxrlhf.ops.trees import overlay
from jaxrlhf.types import Params


def init_adapters(config: ModelConfig, lora: LoraConfig, key: jax.Array) -> Params:
    """Fresh adapters, which add nothing: B is 0, and A uniform within 1 / sqrt(in), as PEFT draws it.

    Args:
        config: the model.
        lora: rank and targets.
        key: consumed.

    Returns:
        Nested dict of float32 arrays; see the head of this file.

    Raises:
        ValueError: if a target matches no matrix.
    """
    assert lora.rank is not None, "there are no adapters without a rank"
    shapes = target_shapes(config, lora)
    adapters: Params = {}
    for (path, (layers, inputs, outputs)), own in zip(shapes.items(), jax.random.split(key, len(shapes)), strict=True):
        bound = inputs**-0.5
        pair = {
            "lora_a": jax.random.uniform(own, (layers, inputs, lora.rank), jnp.float32, -bound, bound),
            "lora_b": jnp.zeros((layers, lora.rank, outputs), jnp.float32),
        }
        adapters = overlay(adapters, at_path(path, pair))
    return adapters


def target_shapes(config: ModelConfig, lora: LoraConfig) -> dict[str, tuple[int, int, int]]:
    """Path of each matrix that gets adapters, such as `layers/self_attn/q_proj` -> [L, in, out].

    Raises:
        ValueError: as `init_adapters`.
    """
    check_targets(config, lora)
    shapes = matrix_shapes(config)
    return {path: shape for path, shape in shapes.items() if any(_names(target, path) for target in lora.targets)}


def check_targets(config: ModelConfig, lora: LoraConfig) -> None:
    """Refuses targets that match no matrix of a model.

    Raises:
        ValueError: naming them, and for the names of published modules what these are called here.
    """
    paths = matrix_shapes(config)
    idle = [target for target in lora.targets if not any(_names(target, path) for path in paths)]
    if lora.rank is not None and idle:
        hints = "".join(f"; {hint}" for target in idle if (hint := _hint(target, config, paths)))
        raise ValueError(f"lora.targets: {', '.join(idle)} matches none of {', '.join(paths)}{hints}")


def matrix_shapes(config: ModelConfig) -> dict[str, tuple[int, int, int]]:
    """Path of each matrix of the blocks, such as `layers/self_attn/q_proj` -> [L, in, out]."""
    layers = jax.tree_util.tree_leaves_with_path({"layers": param_shapes(config)["layers"]})
    paths = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape for path, leaf in layers}
    return {path.removesuffix("/kernel"): shape for path, shape in paths.items() if path.endswith("/kernel")}


def merge(params: Params, scale: float) -> Params:
    """Parameters whose adapters are added to the matrices that they stand beside: W + scale * A B, float32.

    Args:
        params: base and adapters laid over each other; the base in any dtype that it may be kept in.
        scale: `LoraConfig.scale`.

    Returns:
        Nested dict of float32 arrays without adapters.
    """
    return _merge(as_float32(params), scale)


def _merge(params: Any, scale: float) -> Any:
    if not isinstance(params, Mapping):
        return params
    if "lora_a" not in params:
        return {name: _merge(value, scale) for name, value in params.items()}
    rest = {name: value for name, value in params.items() if name not in ("lora_a", "lora_b")}
    added = jnp.matmul(params["lora_a"], params["lora_b"], precision=jax.lax.Precision.HIGHEST)
    return {**rest, "kernel": params["kernel"] + scale * added}


def trained_share(trained: Params, whole: Params) -> str:
    """A few words for a log: how many parameters are trained, of how many.

    Args:
        trained: what is trained.
        whole: the model, with what is trained in it.
    """
    own, all_of_it = _count(trained), _count(whole)
    return f"trains {own:,} of {all_of_it:,} parameters ({own / all_of_it:.2%})"


def at_path(path: str, value: Any) -> dict[str, Any]:
    """A nested dict that holds one value, under a path whose parts are joined by `/`."""
    for name in reversed(path.split("/")):
        value = {name: value}
    return value


def _count(params: Params) -> int:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return sum(math.prod(leaf.shape) for path, leaf in leaves if path[-1].key != "kernel_scale")


def _names(target: str, path: str) -> bool:
    return re.fullmatch(rf"(.*/)?({target})", path) is not None


def _hint(target: str, config: ModelConfig, matrices: Mapping[str, Any]) -> str:
    """What is called otherwise where a target is the name of a published module, or cannot have adapters."""
    found: dict[str, None] = {}
    outside = False
    for row in FAMILIES[config.model_type].tensors:
        paths = [path.rpartition("/")[0] for path in ([row.path] if isinstance(row.path, str) else row.path)]
        module = row.name.rpartition(".")[0].replace(".", "/")
        if any(_names(target, name) for name in (module, *paths)):
            found |= dict.fromkeys(path.removeprefix("layers/") for path in paths if path in matrices)
            outside |= "{layer}" not in row.name
    if found:
        return f"{target} is {', '.join(found)} here"
    return f"{target} cannot have adapters, only matrices of the blocks can" if outside else ""
