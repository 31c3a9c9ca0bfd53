"""In which form parameters are kept on the devices: float32, bfloat16, or matrices in 8 bits with a scale a column."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from jaxrlhf.models.config import ModelConfig
from jaxrlhf.models.decoder import init_params
from jaxrlhf.models.lora_config import BaseDType
from jaxrlhf.models.quantized import SCORE, keep_as, quantize
from jaxrlhf.models.streaming import Arrays, stream
from jaxrlhf.models.tensors import Entry, Index
from jaxrlhf.types import Params


def kept_shapes(config: ModelConfig, dtype: BaseDType = "float32") -> Params:
    """Shapes and dtypes of a model's parameters, without computing anything.

    Args:
        config: the model.
        dtype: that they are kept in.

    Returns:
        Nested dict of `jax.ShapeDtypeStruct`, as `quantized.keep_as` returns the parameters.
    """
    return jax.eval_shape(lambda: keep_as(init_params(config, jax.random.key(0)), dtype))


def read_kept(
    path: str,
    read: Callable[[Index], np.ndarray],
    shape: tuple[int, ...],
    entry: Entry,
    dtype: BaseDType,
    shardings: Mapping[str, NamedSharding],
) -> dict[str, jax.Array]:
    """Reads a parameter to where it is kept, in the form of `quantized.keep_as`.

    Args:
        path: of the parameter.
        read: index of it -> that part, on the host.
        shape: of it.
        entry: the published tensor that it is, or one of its layers.
        dtype: that it is kept in.
        shardings: path -> where it belongs; what is not there belongs on the default device.

    Returns:
        Path -> array, of the parameter and, if it is kept with scales, of these.
    """
    stacked = entry.layer is not None
    # Along what is published as the first axis, pieces are neighbours in the file.
    first = len(shape) - 1 if entry.transpose else int(stacked)
    if dtype == "int8" and path.startswith("layers/") and path.endswith("/kernel"):
        # A scale needs its column as a whole, so pieces are of columns.
        kernel, scale = stream(read, shape, shardings.get(path), _in_8_bits, (0, len(shape) - 1))
        # Scales are small, and have a rule of their own for where they belong.
        return {path: kernel, f"{path}_scale": _moved(scale, shardings.get(f"{path}_scale"))}
    keep = _in_float32 if dtype == "float32" or path.startswith(f"{SCORE}/") else _in_bfloat16
    (kept,) = stream(read, shape, shardings.get(path), keep, (0, first) if stacked else (first,))
    return {path: kept}


def _moved(array: jax.Array, sharding: NamedSharding | None) -> jax.Array:
    if sharding is None or array.sharding == sharding:
        return array
    return jax.jit(lambda values: values, out_shardings=sharding)(array)


def _in_float32(values: jax.Array) -> Arrays:
    return (values.astype(jnp.float32),)


def _in_bfloat16(values: jax.Array) -> Arrays:
    return (values.astype(jnp.bfloat16),)


def _in_8_bits(values: jax.Array) -> Arrays:
    return quantize(values)
