"""The two numbers that all others are divided by: what this device does at most, as the section `peaks` measured it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from benchmarks.device_check.sheet import Row, read_rows

NAME = "ceilings"


class Ceilings(NamedTuple):
    """What was measured.

    Attributes:
        tflops: of the fastest bfloat16 product.
        gbs: bytes read and written by a large copy, in GB/s.
    """

    tflops: float
    gbs: float


def ceilings_of(rows: list[Row]) -> Row:
    """The row that ends the section `peaks`: the best of its bfloat16 products, and its copy.

    Raises:
        ValueError: if either was not measured.
    """
    products = [row["tflops"] for row in rows if row.get("dtype") == "bfloat16" and "tflops" in row]
    copies = [row["gbs"] for row in rows if "gbs" in row]
    if not products or not copies:
        raise ValueError("peaks: no bfloat16 product or no copy was measured, so nothing can be divided by them")
    return {"name": NAME, "tflops": max(products), "gbs": max(copies)}


def read_ceilings(folder: Path, device: str) -> Ceilings | None:
    """What `peaks.jsonl` of a folder says of a device; None without it, or if it is another device's."""
    path = folder / "peaks.jsonl"
    rows = read_rows(path) if path.exists() else []
    found = [row for row in rows if row.get("name") == NAME and row["device"] == device]
    return Ceilings(found[-1]["tflops"], found[-1]["gbs"]) if found else None


def of_products(flops: float, seconds: float, ceilings: Ceilings | None) -> Row:
    """`tflops`, and the `fraction` of the fastest product that they are."""
    tflops = flops / seconds / 1e12
    return {"tflops": tflops} | ({} if ceilings is None else {"fraction": tflops / ceilings.tflops, "of": "product"})


def of_copy(moved: float, seconds: float, ceilings: Ceilings | None) -> Row:
    """`gbs`, and the `fraction` of the copy's bandwidth that they are."""
    gbs = moved / seconds / 1e9
    return {"gbs": gbs} | ({} if ceilings is None else {"fraction": gbs / ceilings.gbs, "of": "copy"})
