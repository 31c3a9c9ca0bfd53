"""What a step of supervised fine-tuning of a 1B model needs of each device, by what the backward pass recomputes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from benchmarks.ahead_of_time.targets import bytes_wanted, compile_for, mesh_for
from jaxrlhf.models.config import AttentionChoice, ComputeConfig, ModelConfig, Remat
from jaxrlhf.models.decoder import make_model, param_shapes
from jaxrlhf.optim import adamw_direction
from jaxrlhf.sharding.place import over_rows, replicated
from jaxrlhf.sharding.rules import shardings_for
from jaxrlhf.steps.sft import sft_loss, sft_totals
from jaxrlhf.steps.update import init_state, make_update
from jaxrlhf.types import TokenBatch

TOKENS = 4096
"""Of the one row that each device has."""

MODEL = ModelConfig(
    vocab_size=128_256,
    hidden_size=2048,
    intermediate_size=8192,
    num_layers=16,
    num_heads=32,
    num_kv_heads=8,
    head_dim=64,
    max_positions=TOKENS,
    tie_embeddings=True,
)
TARGETS = ("h200", "v5e:2x4")
CASES: Sequence[tuple[Remat, AttentionChoice]] = (
    ("none", "auto"),
    ("dots", "auto"),
    ("full", "auto"),
    ("dots", "xla"),
    ("full", "xla"),
)
COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all")
KERNELS = {"cudnn": "__cudnn$fmha", "splash": "splash"}
"""Backend of attention -> what its custom calls are named."""


def train_rows() -> list[dict[str, Any]]:
    """Bytes a device, kernels and collectives of every target and case; each row is printed."""
    rows = []
    for target in TARGETS:
        mesh = mesh_for(target, data=1, fsdp=-1)
        for remat, attention in CASES:
            compute = ComputeConfig(dtype="bfloat16", remat=remat, attention=attention)
            row = {"target": target, "remat": remat, "asked": attention, **_measure(mesh, compute)}
            print(row, flush=True)
            rows.append(row)
    return rows


def train_table(rows: list[dict[str, Any]]) -> list[str]:
    """The rows as a table in Markdown."""
    heading = "target | remat | attention | arguments, GiB | temporaries, GiB | collectives in the program"
    lines = [f"| {heading} |", "| --- " * 6 + "|"]
    for row in rows:
        arguments = "" if row["arguments"] is None else f"{row['arguments'] / 2**30:.2f}"
        temporaries = f"{row['temporaries'] / 2**30:.2f}"
        fit = "" if row["fits"] else " (does not fit)"
        collectives = ", ".join(f"{count} {name}" for name, count in sorted(row["collectives"].items()))
        lines.append(
            f"| {row['target']} | {row['remat']} | {row['attention']} | {arguments} "
            f"| {temporaries}{fit} | {collectives} |"
        )
    return lines


def compile_step(mesh: Mesh, compute: ComputeConfig, model: ModelConfig = MODEL, tokens: int = TOKENS) -> Any:
    """The compiled step: one row of `tokens` a device, parameters and moments divided over "fsdp"."""
    optimizer = adamw_direction(b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.0)
    step = make_update(sft_loss(make_model(model, compute)), sft_totals, optimizer)
    state = jax.eval_shape(lambda params: init_state(params, optimizer), param_shapes(model))
    state = jax.tree.map(_placed, state, shardings_for(state, mesh)[0])
    ids, mask = (jax.ShapeDtypeStruct((mesh.size, tokens), dtype, sharding=over_rows(mesh)) for dtype in ("i4", bool))
    batch = TokenBatch(tokens=ids, targets=ids, mask=mask, positions=ids, segment_ids=ids)  # pyright: ignore[reportArgumentType]
    number = jax.ShapeDtypeStruct((), jnp.float32, sharding=replicated(mesh))
    hyper = {"learning_rate": number, "max_grad_norm": number}
    return compile_for(mesh, jax.jit(step, donate_argnums=0), state, None, batch, hyper)


def _placed(shape: jax.ShapeDtypeStruct, sharding: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)


def _measure(mesh: Mesh, compute: ComputeConfig) -> dict[str, Any]:
    try:
        compiled = compile_step(mesh, compute)
    except jax.errors.JaxRuntimeError as error:
        nothing = {"arguments": None, "attention": "", "collectives": {}}
        return {"fits": False, "temporaries": bytes_wanted(error), **nothing}
    memory, program = compiled.memory_analysis(), compiled.as_text()
    return {
        "fits": True,
        "arguments": memory.argument_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "attention": next((name for name, call in KERNELS.items() if call in program), "xla"),
        "collectives": Counter(re.findall(rf" ({'|'.join(COLLECTIVES)})(?:-start)?\(", program)),
    }
