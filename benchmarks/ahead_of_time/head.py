"""What log-probabilities of targets cost in memory: logits in memory against logits by blocks, at published sizes."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks.ahead_of_time.targets import bytes_wanted, compile_for
from jaxrlhf.kernels import linear_logprobs
from jaxrlhf.types import Head, LogprobOut

TOKENS = 8192
WANT = ("logp", "lse", "entropy", "max_logit")
TARGETS = ("h200", "v5e")
GOALS = {"forward": 20, "forward and backward": 16}
"""How many times less than with logits in memory."""


class Size(NamedTuple):
    """A published unembedding."""

    width: int
    rows: int
    words: int | None = None  # where the checkpoint has more rows than that
    softcap: float | None = None


SIZES = {
    "Llama 3 8B": Size(4096, 128_256),
    "Qwen 2.5 7B": Size(3584, 152_064, words=151_936),
    "Gemma 2 2B": Size(2304, 256_000, softcap=30.0),
}


def head_rows() -> list[dict[str, Any]]:
    """Temporaries of both implementations for every target, size and pass, in bytes; each row is printed."""
    rows = []
    for target in TARGETS:
        for name, size in SIZES.items():
            for which in GOALS:
                row: dict[str, Any] = {"target": target, "head": name, "pass": which}
                for implementation in ("reference", "chunked"):
                    row[implementation] = _temporaries(target, size, implementation, which)
                row["ratio"] = row["reference"] / row["chunked"]
                print(row, flush=True)
                rows.append(row)
    return rows


def head_table(rows: list[dict[str, Any]]) -> list[str]:
    """The rows as a table in Markdown."""
    lines = ["| target | head | pass | logits in memory, MiB | by blocks, MiB | ratio | goal |", "| --- " * 7 + "|"]
    for row in rows:
        sizes = " | ".join(f"{row[name] / 2**20:,.1f}" for name in ("reference", "chunked"))
        cells = f"{row['target']} | {row['head']} | {row['pass']} | {sizes}"
        lines.append(f"| {cells} | {row['ratio']:,.0f} | {GOALS[row['pass']]} |")
    return lines


def _temporaries(target: str, size: Size, implementation: Any, which: str) -> int:
    """Bytes that the compiled program plans beside arguments and results, or would need where it finds no room."""
    hidden = jax.ShapeDtypeStruct((TOKENS, size.width), jnp.bfloat16)
    weight = jax.ShapeDtypeStruct((size.rows, size.width), jnp.bfloat16)
    targets = jax.ShapeDtypeStruct((TOKENS,), jnp.int32)
    cotangents = (jax.ShapeDtypeStruct((TOKENS,), jnp.float32),) * 3

    def forward(hidden: jax.Array, weight: jax.Array, targets: jax.Array) -> LogprobOut:
        head = Head(weight=weight, softcap=size.softcap, vocab_size=size.words)
        return linear_logprobs(hidden, head, targets, want=WANT, implementation=implementation)

    def both(hidden: jax.Array, weight: jax.Array, targets: jax.Array, cotangents: Any) -> Any:
        def outputs(hidden: jax.Array, weight: jax.Array) -> Any:
            out = forward(hidden, weight, targets)
            return (out.logp, out.lse, out.entropy), out

        _, pull_back, out = jax.vjp(outputs, hidden, weight, has_aux=True)
        return out, pull_back(cotangents)

    try:
        if which == "forward":
            compiled = compile_for(target, forward, hidden, weight, targets)
        else:
            compiled = compile_for(target, both, hidden, weight, targets, cotangents)
    except jax.errors.JaxRuntimeError as error:
        return bytes_wanted(error)
    return compiled.memory_analysis().temp_size_in_bytes
