"""The head on a CPU: time, temporaries and errors of `linear_logprobs` and `fused_token_loss` beside others.

    NPROC=1 python -m benchmarks.head_cpu [--vocab 32000 128000] [--rounds 5] [--out FILE]

2048 tokens of width 512 in float32. Everything runs in one process and one thread, in turns (A B C, A B C, ...), and
CPU-seconds are counted: others use this machine. "naive" holds the logits in memory and is differentiated by jax. Torch
and tokamax take part where they are installed; they compute the mean negative log-likelihood alone.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("NPROC", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false".strip()

import jax  # noqa: E402  (the threads are set before jax is imported)
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from jaxrlhf.kernels import fused_token_loss, linear_logprobs  # noqa: E402
from jaxrlhf.types import LogprobOut  # noqa: E402

TOKENS, WIDTH = 2048, 512
MIB = 2**20
COEFFICIENTS = {"logp": -1.0, "lse": 0.1, "entropy": -0.01, "kl": 0.05}
"""Of the loss, which is the mean over tokens of the weighted sum of its fields."""

TASKS = {"loss": ("logp",), "loss and entropy": ("logp", "lse", "entropy"), "loss, entropy and KL": tuple(COEFFICIENTS)}

Contestant = tuple[Callable[[], Any], float | None]
"""What to call, and the MiB of temporaries that its compiler planned."""


def total(out: LogprobOut, count: Any) -> jax.Array:
    """The loss of some tokens."""
    return sum((c * jnp.sum(x) for name, c in COEFFICIENTS.items() if (x := getattr(out, name)) is not None)) / count


def ours(want: tuple[str, ...], implementation: str) -> Callable[..., jax.Array]:
    """The loss by one of the library's ways, of hidden states, weight, targets, and a reference's first two."""

    def loss(hidden: jax.Array, weight: jax.Array, targets: jax.Array, *ref: jax.Array) -> jax.Array:
        given: dict[str, Any] = {"want": want, "ref": ref if "kl" in want else None}
        if implementation == "fused":

            def of_tokens(out: LogprobOut, mask: Any, aux: Any, count: Any) -> tuple[jax.Array, Any]:
                del mask, aux
                return total(out, count), {}

            return fused_token_loss(of_tokens, hidden, weight, targets, given=jnp.float32(len(targets)), **given)[0]
        given["implementation"] = "reference" if implementation == "naive" else "chunked"
        return total(linear_logprobs(hidden, weight, targets, **given), len(targets))

    return loss


def tokamax(*arrays: jax.Array) -> jax.Array:
    """The mean negative log-likelihood by tokamax's chunked XLA."""
    import tokamax as library  # pyright: ignore[reportMissingImports]

    hidden, weight, targets = arrays[:3]
    return library.linear_softmax_cross_entropy_loss(
        hidden, targets, weight.T, reduction="mean", implementation="chunked_xla"
    )


def compiled(loss: Callable[..., jax.Array], arrays: tuple[jax.Array, ...], backward: bool) -> Contestant:
    """A program of jax."""
    function = jax.value_and_grad(loss, (0, 1)) if backward else loss
    program = jax.jit(function).lower(*arrays).compile()
    plan: Any = program.memory_analysis()
    return lambda: jax.block_until_ready(program(*arrays)), plan.temp_size_in_bytes / MIB


def by_torch(arrays: tuple[jax.Array, ...], backward: bool) -> Contestant:
    """Cross-entropy of torch's logits."""
    import torch

    torch.set_num_threads(1)
    hidden, weight = (torch.tensor(np.asarray(x)).requires_grad_(backward) for x in arrays[:2])
    targets = torch.tensor(np.asarray(arrays[2]), dtype=torch.long)

    def run() -> Any:
        loss = torch.nn.functional.cross_entropy(hidden @ weight.T, targets)
        return torch.autograd.grad(loss, (hidden, weight)) if backward else loss

    return run, None


def make_arrays(vocab: int, tokens: int = TOKENS) -> tuple[jax.Array, ...]:
    """Hidden states, weight and targets, and the reference's hidden states and weight, which are close to these."""
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    hidden, weight = normal(tokens, WIDTH), normal(vocab, WIDTH) / WIDTH**0.5
    targets = jnp.asarray(rng.integers(vocab, size=tokens), jnp.int32)
    return hidden, weight, targets, hidden + 0.1 * normal(tokens, WIDTH), weight


def contestants(task: str, arrays: tuple[jax.Array, ...], backward: bool) -> dict[str, Contestant]:
    """Who takes part in a task."""
    names = ("naive", "chunked", "fused") if backward else ("naive", "chunked")
    found = {name: compiled(ours(TASKS[task], name), arrays, backward) for name in names}
    if task == "loss":
        if importlib.util.find_spec("tokamax"):
            found["tokamax chunked_xla"] = compiled(tokamax, arrays, backward)
        if importlib.util.find_spec("torch"):
            found["torch cross_entropy"] = by_torch(arrays, backward)
    return found


def measure(vocab: int, task: str, backward: bool, rounds: int) -> list[dict[str, Any]]:
    """One row a contestant."""
    taking_part = contestants(task, make_arrays(vocab), backward)
    seconds: dict[str, list[float]] = {name: [] for name in taking_part}
    for turn in range(rounds + 1):
        for name, (run, _) in taking_part.items():
            start = time.process_time()
            run()
            if turn:  # the first is the warm-up
                seconds[name].append(time.process_time() - start)
    base, temporaries = statistics.median(seconds["naive"]), taking_part["naive"][1]
    rows = []
    for name, (_, temp) in taking_part.items():
        middle = statistics.median(seconds[name])
        units = (2 if "KL" in task else 1) + (2 if backward else 0)
        rows.append(
            {
                "vocab": vocab,
                "task": task,
                "pass": "forward + backward" if backward else "forward",
                "by": name,
                "cpu_s": round(middle, 3),
                "spread": round((max(seconds[name]) - min(seconds[name])) / middle, 2),
                "ratio": round(middle / base, 3),
                "gflops_per_s": round(units * 2 * TOKENS * WIDTH * vocab / middle / 1e9, 1),
                "temp_mib": None if temp is None else round(temp, 1),
                "temp_ratio": None if temp is None or not temporaries else round(temp / temporaries, 4),
            }
        )
    return rows


def matmul_rate(vocab: int = 32000) -> float:
    """GFLOP/s of the bare product of the head, which is the limit of all of them."""
    hidden, weight, *_ = make_arrays(vocab)
    run = jax.jit(lambda h, w: jnp.einsum("nd,vd->nv", h, w, precision="highest")).lower(hidden, weight).compile()
    best = float("inf")
    for _ in range(4):
        start = time.process_time()
        jax.block_until_ready(run(hidden, weight))
        best = min(best, time.process_time() - start)
    return 2 * TOKENS * WIDTH * vocab / best / 1e9


def errors(vocab: int = 32003, tokens: int = 96) -> dict[str, dict[str, float]]:
    """Largest errors against float64, absolute for values and relative (Frobenius) for gradients."""
    arrays = make_arrays(vocab, tokens)
    hidden, weight, ref_hidden, _ = (np.asarray(x, np.float64) for x in (*arrays[:2], *arrays[3:]))
    targets = np.asarray(arrays[2])
    logits, ref_logits = hidden @ weight.T, ref_hidden @ weight.T
    lse, ref_lse = (np.log(np.exp(z).sum(-1)) for z in (logits, ref_logits))
    logp, ref_logp = logits - lse[:, None], ref_logits - ref_lse[:, None]
    p = np.exp(logp)
    truth = {"logp": logp[np.arange(tokens), targets], "lse": lse, "entropy": -(p * logp).sum(-1)}
    truth["kl"] = (p * (logp - ref_logp)).sum(-1)
    hit = np.arange(vocab) == targets[:, None]
    slope = COEFFICIENTS["logp"] * (hit - p) + COEFFICIENTS["lse"] * p
    slope -= COEFFICIENTS["entropy"] * p * (logp + truth["entropy"][:, None])
    slope += COEFFICIENTS["kl"] * p * (logp - ref_logp - truth["kl"][:, None])
    gradients = {"d_hidden": slope @ weight / tokens, "d_weight": slope.T @ hidden / tokens}

    found: dict[str, dict[str, float]] = {}
    for name in ("naive", "chunked", "fused"):
        loss = ours(tuple(COEFFICIENTS), name)
        parts = dict(zip(gradients, jax.jit(jax.grad(loss, (0, 1)))(*arrays), strict=True))
        off = {key: float(np.linalg.norm(parts[key] - x) / np.linalg.norm(x)) for key, x in gradients.items()}
        if name != "fused":
            kind = "reference" if name == "naive" else "chunked"
            options: dict[str, Any] = {"want": tuple(COEFFICIENTS), "implementation": kind}
            run = jax.jit(lambda h, w, t, *ref, options=options: linear_logprobs(h, w, t, ref=ref, **options))
            out = run(*arrays)
            off |= {key: float(np.max(np.abs(getattr(out, key) - x))) for key, x in truth.items()}
        found[name] = off
    return found | {"median KL": {"kl": float(np.median(truth["kl"]))}}


def main() -> None:
    """Measures and prints JSON lines; the last one says what the machine can do."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocab", type=int, nargs="+", default=[32_000, 128_000])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=None)
    asked = parser.parse_args()
    rows = []
    for vocab in asked.vocab:
        for task in TASKS:
            for backward in (False, True):
                for row in measure(vocab, task, backward, asked.rounds):
                    rows.append(row)
                    print(json.dumps(row), flush=True)
    summary = {"matmul_gflops_per_s": round(matmul_rate(), 1), "errors": errors(), "jax": jax.__version__}
    print(json.dumps(summary))
    if asked.out:
        asked.out.write_text(json.dumps({"rows": rows, **summary}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
