"""A short name for the values of parameters, by which a resumed run knows the models that it does not train."""

from __future__ import annotations

import hashlib
import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxrlhf.checkpoint.leaves import layouts, named


def fingerprint(params: Any) -> str:
    """The same for equal values, however they are spread over devices; one pass over them, on the devices.

    Args:
        params: pytree of arrays of 8, 16 or 32 bits.

    Returns:
        SHA-256 in hexadecimal, of names, dtypes, shapes and a checksum of 32 bits a leaf. It tells models apart that
        are mistaken for each other, and does not withstand somebody who wants to deceive it.
    """
    leaves = named(params)
    sums = jax.device_get(jax.jit(lambda leaves: [_checksum(leaf) for leaf in leaves.values()])(leaves))
    digest = hashlib.sha256()
    for (name, layout), checksum in zip(layouts(leaves).items(), sums, strict=True):
        digest.update(f"{name} {layout} {int(checksum)}\n".encode())
    return digest.hexdigest()


def _checksum(leaf: jax.Array) -> jax.Array:
    """The sum of bits times odd numbers that differ from place to place; integers wrap, so order does not matter."""
    unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[leaf.dtype.itemsize]
    bits = jax.lax.bitcast_convert_type(leaf, unsigned).astype(jnp.uint32) * jnp.uint32(0x9E3779B1)
    bits ^= bits >> 15  # of numbers that were bfloat16 once, the low half is 0; now it is not
    place = jnp.zeros(leaf.shape, jnp.uint32)
    for axis in range(leaf.ndim):
        stride = math.prod(leaf.shape[axis + 1 :]) % 2**32
        place += jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis) * jnp.uint32(stride)
    return jnp.sum((2 * place + 1) * bits, dtype=jnp.uint32)
