"""How long the train step takes to compile with few layers and with many: it should not matter.

    python benchmarks/compile_time.py

Seconds of processor time to compile the SFT step for this machine, the fastest of three, and operations in the program;
nothing is computed. Layers of several kinds share a round of the loop, and those that are left after the last round
stand behind it.
"""

from __future__ import annotations

import json
import time
from typing import Any

import jax
import jax.numpy as jnp

from jaxrlhf.models.config import LayerKind, ModelConfig
from jaxrlhf.models.decoder import make_model, param_shapes
from jaxrlhf.optim import adamw_direction
from jaxrlhf.steps.sft import sft_loss, sft_totals
from jaxrlhf.steps.update import init_state, make_update
from jaxrlhf.types import TokenBatch

LOCAL, WHOLE = LayerKind(window=128), LayerKind()
CASES = {"one kind": ((WHOLE,), (4, 32)), "two kinds": ((LOCAL, WHOLE), (4, 32)),
         "six kinds": ((*(LOCAL,) * 5, WHOLE), (12, 36, 26))}  # fmt: skip
"""Name -> kinds of layers, and numbers of layers."""


def rows() -> list[dict[str, Any]]:
    """Seconds and operations of each case; each row is printed."""
    found = []
    for name, (pattern, counts) in CASES.items():
        for layers in counts:
            row = {"kinds": name, "layers": layers, **measure(pattern, layers)}
            print(json.dumps(row), flush=True)
            found.append(row)
    return found


def measure(pattern: tuple[LayerKind, ...], layers: int) -> dict[str, Any]:
    """Seconds to compile the step, the fastest of three, and operations in what was compiled."""
    seconds, program = [], ""
    for _ in range(3):
        jax.clear_caches()
        lowered = lower_step(pattern, layers)
        start = time.process_time()
        program = lowered.compile().as_text()
        seconds.append(time.process_time() - start)
    return {"seconds": round(min(seconds), 2), "operations": program.count(" = ")}


def lower_step(pattern: tuple[LayerKind, ...], layers: int) -> Any:
    """The SFT step of a small model, lowered."""
    config = ModelConfig(
        vocab_size=1024,
        hidden_size=128,
        intermediate_size=256,
        num_layers=layers,
        num_heads=4,
        num_kv_heads=2,
        head_dim=32,
        max_positions=256,
        pattern=pattern,
    )
    optimizer = adamw_direction(b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.0)
    step = make_update(sft_loss(make_model(config)), sft_totals, optimizer)
    state = jax.eval_shape(lambda params: init_state(params, optimizer), param_shapes(config))
    ids, mask = (jax.ShapeDtypeStruct((4, 256), dtype) for dtype in (jnp.int32, jnp.bool_))
    batch = TokenBatch(tokens=ids, targets=ids, mask=mask, positions=ids, segment_ids=ids)  # pyright: ignore[reportArgumentType]
    hyper = {name: jax.ShapeDtypeStruct((), jnp.float32) for name in ("learning_rate", "max_grad_norm")}
    return jax.jit(step, donate_argnums=0).lower(state, None, batch, hyper)


if __name__ == "__main__":
    rows()
