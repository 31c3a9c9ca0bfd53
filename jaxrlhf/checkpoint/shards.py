"""Tensors to safetensors files, one after another: no file is in memory as a whole.

A file is the length of its header, 8 bytes, little-endian; the header, JSON, from names to dtypes, shapes and places;
and the values, in the order of the header.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

_NAMES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
"""dtype -> what safetensors call it."""


def plan_shards(sizes: dict[str, int], limit: int) -> list[list[str]]:
    """Divides tensors, in their order, over as few files as a limit allows.

    Args:
        sizes: name -> bytes.
        limit: bytes of a file; a larger tensor gets a file of its own.

    Returns:
        Names in each file.
    """
    shards: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if shards[-1] and filled + size > limit:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards


@contextlib.contextmanager
def open_shard(
    file: Path, shapes: Mapping[str, tuple[int, ...]], dtype: np.dtype
) -> Iterator[Callable[[np.ndarray], None]]:
    """Opens a safetensors file to write.

    Args:
        file: to create.
        shapes: name -> shape, in the order of the file.
        dtype: of all tensors: float32, bfloat16 or float16.

    Yields:
        What takes the tensors, one a call, in that order.
    """
    expected = iter(shapes.values())
    with file.open("wb") as handle:
        handle.write(_header(shapes, dtype))

        def append(tensor: np.ndarray) -> None:
            announced = (next(expected), dtype)
            assert (tensor.shape, tensor.dtype) == announced, f"{file}: another tensor was announced"
            handle.write(np.ascontiguousarray(tensor).view(np.uint8).data)

        yield append


def _header(shapes: Mapping[str, tuple[int, ...]], dtype: np.dtype) -> bytes:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}  # without it, transformers does not read the file
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": _NAMES[dtype.name], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # values begin at a multiple of 8 bytes
    return len(text).to_bytes(8, "little") + text
