"""The section `peaks`: products in bfloat16 and float32, and a copy."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.device_check.ceilings import ceilings_of, of_copy, of_products
from benchmarks.device_check.compiled import ready
from benchmarks.device_check.contest import Contestant, hold
from benchmarks.device_check.shapes import Shapes
from benchmarks.device_check.sheet import Sheet, read_rows
from benchmarks.device_check.units import gemm_unit

ROUNDING = {
    "bfloat16": ("bfloat16", jax.lax.Precision.DEFAULT),
    "float32, DEFAULT": ("float32", jax.lax.Precision.DEFAULT),
    "float32, HIGHEST": ("float32", jax.lax.Precision.HIGHEST),
}
"""How products are rounded. The default of an accelerator is TF32 or bfloat16 passes; the library asks for HIGHEST."""


def measure(sheet: Sheet, shapes: Shapes) -> None:
    """Writes a row for each product and copy, and one with the two numbers that others divide by."""
    products = [(side, side, side) for side in shapes.squares] + [tuple(shapes.product)]
    hold(sheet, [_product("bfloat16", *size) for size in products] + [_copy(shapes.copy_mib)])
    sheet.add(**ceilings_of(read_rows(sheet.path)))
    side = shapes.squares[len(shapes.squares) // 2]
    hold(sheet, [_product(name, side, side, side) for name in ROUNDING if name != "bfloat16"])


def _product(rounding: str, rows: int, inner: int, columns: int) -> Contestant:
    """[rows, inner] x [inner, columns], the result in the dtype of the operands."""
    dtype, precision = ROUNDING[rounding]

    def prepare():
        left, right = (random(i, shape, dtype) for i, shape in enumerate([(rows, inner), (inner, columns)]))
        return ready(lambda left, right: jnp.matmul(left, right, precision=precision), left, right)

    flops = gemm_unit(rows, inner, columns)
    row = {"name": "product", "shape": f"{rows} x {inner} x {columns}", "dtype": rounding, "implementation": "jax"}
    return Contestant(row=row, prepare=prepare, worth=lambda seconds: of_products(flops, seconds, None))


def _copy(mib: int) -> Contestant:
    """Reads an array and writes another as large; negated, since a bare copy need not be one."""
    size = mib * 2**20

    def prepare():
        return ready(jnp.negative, random(2, (size // 4,), "float32"))

    row = {"name": "copy", "shape": f"{mib} MiB", "dtype": "float32", "implementation": "jax"}
    return Contestant(row=row, prepare=prepare, worth=lambda seconds: of_copy(2 * size, seconds, None))


def random(seed: int, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Normal numbers, made on the device: never zeros, with which devices draw less power and run faster."""
    return jax.block_until_ready(_normal(seed, shape, jnp.dtype(dtype).name))


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _normal(seed: int, shape: tuple[int, ...], dtype: str) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape, jnp.dtype(dtype))
