"""The first run of the README, planned: memory of the programs of SFT, DPO and GRPO with LoRA, and the least time.

Qwen2.5-0.5B, adapters of rank 16 beside every matrix, the base in bfloat16, on one H200. A program's memory is what the
compiler planned; its time is a bound, the operations that it cannot do without at the published peak, or the bytes that
it must read at the published bandwidth.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from benchmarks.ahead_of_time.decode import BANDWIDTH, compile_chunk
from benchmarks.ahead_of_time.targets import compile_for, mesh_for
from jaxrlhf.models.config import ComputeConfig, LayerKind, ModelConfig
from jaxrlhf.models.decoder import make_model, param_shapes
from jaxrlhf.models.lora import init_adapters
from jaxrlhf.models.lora_config import LoraConfig
from jaxrlhf.optim import adamw_direction
from jaxrlhf.sharding.place import over_rows, replicated
from jaxrlhf.sharding.rules import shardings_for
from jaxrlhf.steps.adapters import loss_over
from jaxrlhf.steps.dpo import dpo_totals, preference_loss
from jaxrlhf.steps.grpo import policy_loss, rollout_totals
from jaxrlhf.steps.sft import sft_loss, sft_totals
from jaxrlhf.steps.update import init_state, make_update
from jaxrlhf.types import Model, PairBatch, Rollout, TokenBatch

MODEL = ModelConfig(
    vocab_size=151_936,
    hidden_size=896,
    intermediate_size=4864,
    num_layers=24,
    num_heads=14,
    num_kv_heads=2,
    head_dim=64,
    max_positions=32_768,
    pattern=(LayerKind(rope_theta=1_000_000.0),),
    norm_eps=1e-6,
    qkv_bias=True,
    tie_embeddings=True,
    model_type="qwen2",
)
LORA = LoraConfig(rank=16, base="bfloat16")
COMPUTE = ComputeConfig(dtype="bfloat16", remat="dots")
ROWS, TOKENS = 32, 1024
"""Of a step of SFT; of DPO, half as many pairs. GRPO has as many answers, of half as many tokens, behind a prompt."""

PEAK = 989e12
"""Operations a second of an H200 in bfloat16, dense, as published."""


class Program(NamedTuple):
    """A program of the run.

    Attributes:
        name: of the method, and of the program if it has several.
        shape: of its batch, in words.
        compile: for a mesh.
        seconds: the least time.
    """

    name: str
    shape: str
    compile: Callable[[Mesh], Any]
    seconds: float


def first_run_rows() -> list[dict[str, Any]]:
    """Bytes and the least time of each program; each row is printed."""
    mesh, rows = mesh_for("h200", data=1), []
    for program in _programs():
        memory = program.compile(mesh).memory_analysis()
        row = {
            "program": program.name,
            "shape": program.shape,
            "arguments": memory.argument_size_in_bytes,
            "temporaries": memory.temp_size_in_bytes,
            "seconds": program.seconds,
        }
        print(row, flush=True)
        rows.append(row)
    return rows


def first_run_table(rows: list[dict[str, Any]]) -> list[str]:
    """The rows as a table in Markdown."""
    lines = ["| program | batch | arguments, GiB | temporaries, GiB | least time, ms |", "| --- " * 5 + "|"]
    for row in rows:
        sizes = (f"{row[name] / 2**30:.2f}" for name in ("arguments", "temporaries"))
        lines.append(f"| {row['program']} | {row['shape']} | {' | '.join(sizes)} | {row['seconds'] * 1e3:.1f} |")
    return lines


def _programs() -> list[Program]:
    answers = TOKENS // 2
    slots = f"{ROWS} answers of {answers} tokens behind {answers} of prompt"
    # The base is multiplied with going forward, and with what comes back, but has no gradient; the adapters are small.
    trained, read = 2, 1
    return [
        Program("SFT, step", f"{ROWS} rows of {TOKENS}", _compile_sft, _seconds(ROWS, TOKENS, trained)),
        Program("DPO, step", f"{ROWS // 2} pairs of {TOKENS}", _compile_dpo, _seconds(ROWS, TOKENS, trained + read)),
        Program("GRPO, a step of decoding", slots, _compile_decoding, _decoding_seconds(ROWS, TOKENS)),
        Program("GRPO, update", slots, _compile_grpo, _seconds(ROWS, TOKENS, trained)),
    ]


def _seconds(rows: int, tokens: int, passes: int) -> float:
    """Of passes over all matrices, each of 2 operations a parameter and token, and over the lower half of attention."""
    matrices = _matrices(param_shapes(MODEL))
    attention = MODEL.num_layers * MODEL.num_heads * MODEL.head_dim * tokens  # scores and values, half of them masked
    return passes * 2 * rows * tokens * (matrices + attention) / PEAK


def _decoding_seconds(rows: int, columns: int) -> float:
    """Of reading the parameters, and keys and values of full rows, in 2 bytes each."""
    cache = rows * columns * MODEL.num_layers * 2 * MODEL.num_kv_heads * MODEL.head_dim
    return 2 * (_matrices(param_shapes(MODEL)) + cache) / BANDWIDTH["h200"]


def _matrices(shapes: Any) -> int:
    """Parameters that tokens are multiplied with; the embedding is the unembedding too."""
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def _compile_sft(mesh: Mesh) -> Any:
    return _compile_step(mesh, sft_loss, sft_totals, _tokens(mesh, ROWS, TOKENS), ())


def _compile_dpo(mesh: Mesh) -> Any:
    pairs = _tokens(mesh, ROWS // 2, 2, TOKENS)
    batch: Any = PairBatch(answers=pairs, margin=_rows(mesh, (ROWS // 2,), jnp.float32))  # pyright: ignore[reportArgumentType]
    return _compile_step(mesh, preference_loss, dpo_totals, batch, ("beta",))


def _compile_grpo(mesh: Mesh) -> Any:
    answer, number = (ROWS, TOKENS // 2), functools.partial(_rows, mesh, dtype=jnp.float32)
    batch: Any = Rollout(
        batch=_tokens(mesh, ROWS, TOKENS, columns=TOKENS // 2),
        mask=_rows(mesh, answer, jnp.bool_),  # pyright: ignore[reportArgumentType]
        logprobs=number(answer),
        ref_logprobs=number(answer),
        advantages=number((ROWS,)),
    )
    loss = functools.partial(policy_loss, reduction="grpo", kl="k3")
    return _compile_step(mesh, loss, rollout_totals, batch, ("clip_low", "clip_high", "kl_coef", "temperature"))


def _compile_decoding(mesh: Mesh) -> Any:
    return compile_chunk(mesh, MODEL, ROWS, TOKENS)[2].compiled


def _compile_step(
    mesh: Mesh, loss: Callable[[Model], Any], totals: Callable[[Any], Any], batch: Any, constants: tuple[str, ...]
) -> Any:
    """The step of a method whose policy and reference stand over one base."""
    bases = {"policy": "base", "reference": "base"}
    optimizer = adamw_direction(b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.0)
    step = make_update(loss_over(loss(make_model(MODEL, COMPUTE, LORA)), "policy", bases), totals, optimizer)
    adapters = jax.eval_shape(lambda: init_adapters(MODEL, LORA, jax.random.key(0)))
    state = jax.eval_shape(lambda params: init_state(params, optimizer), adapters)
    base = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16), param_shapes(MODEL))
    number = jax.ShapeDtypeStruct((), jnp.float32, sharding=replicated(mesh))
    hyper = dict.fromkeys(("learning_rate", "max_grad_norm", *constants), number)
    state, frozen = (_placed(mesh, tree) for tree in (state, {"base": base}))
    return compile_for(mesh, jax.jit(step, donate_argnums=0), state, frozen, batch, hyper)


def _placed(mesh: Mesh, shapes: Any) -> Any:
    return jax.tree.map(
        lambda leaf, own: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=own),
        shapes,
        shardings_for(shapes, mesh)[0],
    )


def _tokens(mesh: Mesh, *shape: int, columns: int | None = None) -> Any:
    whole = _rows(mesh, shape, jnp.int32)
    return TokenBatch(
        tokens=whole,
        targets=whole,
        mask=_rows(mesh, shape, jnp.bool_),
        positions=whole,
        segment_ids=whole,
        columns=None if columns is None else _rows(mesh, (*shape[:-1], columns), jnp.int32),
    )


def _rows(mesh: Mesh, shape: tuple[int, ...], dtype: Any) -> Any:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=over_rows(mesh))
