"""What log-probabilities of targets cost in memory: with all logits, by blocks, by rows; at published sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks.ahead_of_time.targets import bytes_wanted, compile_for
from jaxrlhf.kernels import fused_token_loss, linear_logprobs
from jaxrlhf.ops.stats import mean_of
from jaxrlhf.types import Head, LogprobOut, Metrics

TOKENS = 8192
WANT = ("logp", "lse", "entropy", "max_logit")
TARGETS = ("h200", "v5e")
GOALS = {"forward": 20, "forward and backward": 16}
"""How many times less `linear_logprobs` is to plan than with logits in memory; `fused_token_loss` has no goal."""

IMPLEMENTATIONS = ("reference", "chunked", "fused")
Arrays = tuple[jax.Array, jax.Array, jax.Array]  # log-probabilities of targets, log-sum-exp, entropy


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
    """Temporaries of all implementations for every target, size and pass, in bytes; each row is printed."""
    rows = []
    for target in TARGETS:
        for name, size in SIZES.items():
            for which in GOALS:
                row: dict[str, Any] = {"target": target, "head": name, "pass": which}
                row |= {how: _temporaries(target, size, how, which) for how in IMPLEMENTATIONS}
                print(row, flush=True)
                rows.append(row)
    return rows


def head_table(rows: list[dict[str, Any]]) -> list[str]:
    """The rows as a table in Markdown; beside each what is saved, the times less than with logits in memory."""
    titles = ["target", "head", "pass", "logits in memory, MiB", "`linear_logprobs`", "less", "goal"]
    titles += ["`fused_token_loss`", "less"]
    lines = [f"| {' | '.join(titles)} |", "| --- " * len(titles) + "|"]
    for row in rows:
        mib = {how: f"{row[how] / 2**20:,.1f}" for how in IMPLEMENTATIONS}
        less = {how: _times(row["reference"] / row[how]) for how in IMPLEMENTATIONS}
        cells = [row["target"], row["head"], row["pass"], mib["reference"], mib["chunked"], less["chunked"]]
        cells += [str(GOALS[row["pass"]]), mib["fused"], less["fused"]]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _times(ratio: float) -> str:
    return f"{ratio:,.0f}" if ratio >= 10 else f"{ratio:.1f}"


def _temporaries(target: str, size: Size, implementation: str, which: str) -> int:
    """Bytes that the compiled program plans beside arguments and results, or would need where it finds no room."""
    hidden = jax.ShapeDtypeStruct((TOKENS, size.width), jnp.bfloat16)
    weight = jax.ShapeDtypeStruct((size.rows, size.width), jnp.bfloat16)
    targets = jax.ShapeDtypeStruct((TOKENS,), jnp.int32)
    arrays = (jax.ShapeDtypeStruct((TOKENS,), jnp.float32),) * 3
    run, given = program(size, implementation, backward=which != "forward")
    try:
        compiled = compile_for(target, run, hidden, weight, targets, *([arrays] if given else []))
    except jax.errors.JaxRuntimeError as error:
        return bytes_wanted(error)
    return compiled.memory_analysis().temp_size_in_bytes


def program(size: Size, implementation: Any, *, backward: bool) -> tuple[Callable[..., Any], bool]:
    """What is compiled: (hidden states, weight, targets) -> outputs, or with the backward pass outputs and gradients.

    Args:
        size: of the head.
        implementation: one of `IMPLEMENTATIONS`; "fused" returns the loss and its metrics in place of outputs.
        backward: whether gradients by hidden states and weight are formed.

    Returns:
        The function, and whether it takes a fourth argument: what each token counts in the loss, by output.
    """

    def head(weight: jax.Array) -> Head:
        return Head(weight=weight, softcap=size.softcap, vocab_size=size.words)

    def forward(hidden: jax.Array, weight: jax.Array, targets: jax.Array) -> LogprobOut:
        return linear_logprobs(hidden, head(weight), targets, want=WANT, implementation=implementation)

    def both(hidden: jax.Array, weight: jax.Array, targets: jax.Array, cotangents: Arrays) -> Any:
        def outputs(hidden: jax.Array, weight: jax.Array) -> Any:
            out = forward(hidden, weight, targets)
            return (out.logp, out.lse, out.entropy), out

        _, pull_back, out = jax.vjp(outputs, hidden, weight, has_aux=True)
        return out, pull_back(cotangents)

    def fused(hidden: jax.Array, weight: jax.Array, targets: jax.Array, parts: Arrays) -> tuple[jax.Array, Metrics]:
        return fused_token_loss(_loss, hidden, head(weight), targets, parts, want=WANT)

    if implementation == "fused":
        return jax.value_and_grad(fused, argnums=(0, 1), has_aux=True) if backward else fused, True
    return both if backward else forward, backward


def _loss(out: LogprobOut, mask: jax.Array, parts: Arrays, given: Any) -> tuple[jax.Array, Metrics]:
    """A loss that reads every output, the last by a metric."""
    del given
    *fields, max_logit = (out._asdict()[name] for name in WANT)
    loss = sum((jnp.sum(part * field) for part, field in zip(parts, fields, strict=True)), jnp.zeros(()))
    return loss, {"max_logit": mean_of(max_logit, mask)}
