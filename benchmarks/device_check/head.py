"""The section `head`: hidden states to log-probabilities and their gradients, beside jax and torch that keep logits."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks.device_check.ceilings import Ceilings, of_products
from benchmarks.device_check.compiled import ready
from benchmarks.device_check.contest import Contestant, Runner, hold
from benchmarks.device_check.peaks import random
from benchmarks.device_check.shapes import HeadShape, Shapes
from benchmarks.device_check.sheet import Row, Sheet
from benchmarks.device_check.units import Mode, gemm_unit, head_units
from jaxrlhf.kernels import fused_token_loss, linear_logprobs
from jaxrlhf.kernels.tiles import TILES, TileSize
from jaxrlhf.types import LogprobOut

WANTED = {
    "logp": ("logp",),
    "logp, entropy, KL": ("logp", "entropy", "kl"),
    "logp, entropy": ("logp", "entropy"),
}
"""Name of what is computed -> its fields. The KL is that of whole distributions, to a frozen reference as wide."""

COEFFICIENTS = {"logp": -1.0, "entropy": -0.01, "kl": 0.05}
"""Of the loss, which is the mean over tokens of the sum of its fields."""

MODES: tuple[Mode, ...] = ("fwd", "fwd+bwd")


class Task(NamedTuple):
    """One comparison: a shape, what is computed there, and how far."""

    shape: HeadShape
    wanted: str
    mode: Mode

    @property
    def row(self) -> Row:
        """How it stands in a row."""
        return {"name": f"{self.mode}: {self.wanted}", "shape": str(self.shape), "dtype": "bfloat16"}

    @property
    def kl(self) -> bool:
        """Whether there is a reference."""
        return "kl" in WANTED[self.wanted]


def measure(sheet: Sheet, shapes: Shapes, ceilings: Ceilings | None, *, peers: bool, compile_torch: bool) -> None:
    """Writes a row for each task and contestant: all of them at the first shape, fewer at those that follow.

    Args:
        sheet: the section's.
        shapes: sizes.
        ceilings: what fractions are of.
        peers: whether torch takes part.
        compile_torch: whether its compiler does.
    """
    for place, shape in enumerate(shapes.heads):
        for wanted in list(WANTED)[: (3, 2)[place] if place < 2 else 1]:
            for mode in MODES:
                task = Task(shape, wanted, mode)
                contestants = _ours(task, ceilings, shapes, whole=place == 0)
                if peers and WANTED[wanted] == ("logp",):
                    contestants += _peers(task, ceilings, compile_torch=compile_torch and place < 2)
                hold(sheet, contestants, rounds=5)


def _ours(task: Task, ceilings: Ceilings | None, shapes: Shapes, *, whole: bool) -> list[Contestant]:
    """The library's, and beside them logits in memory; `whole` adds other tiles, float32 weights and bare products."""
    names = ["chunked", "fused"] if task.mode == "fwd+bwd" else ["chunked"]
    inputs = functools.cache(functools.partial(make_inputs, task))
    found = [_contestant(task, name, ceilings, jnp.bfloat16, inputs) for name in [*names, "reference"]]
    if whole and WANTED[task.wanted] == ("logp",):
        found += [_contestant(task, "chunked", ceilings, jnp.bfloat16, inputs, tile) for tile in shapes.tiles]
    if whole and not task.kl:
        found += [_contestant(task, name, ceilings, jnp.float32, inputs) for name in names]
        found.append(_products(task, ceilings, inputs))
    return found


def _contestant(
    task: Task,
    implementation: str,
    ceilings: Ceilings | None,
    weights: Any,
    inputs: Callable[..., Any],
    tile: TileSize | None = None,
) -> Contestant:
    def prepare() -> Runner:
        arguments = inputs(weights)
        with tiled(tile):
            if task.mode == "fwd":
                return ready(_values(task, implementation), *arguments)
            return ready(jax.value_and_grad(_loss(task, implementation), argnums=(0, 1)), *arguments)

    row = task.row | {
        "implementation": implementation if tile is None else f"{implementation} {tile.rows}x{tile.columns}"
    }
    if weights == jnp.float32:  # as a trainer holds it
        row["dtype"] = "bfloat16, weights float32"
    return Contestant(row=row, prepare=prepare, worth=worth_of(task, implementation, ceilings))


@contextlib.contextmanager
def tiled(tile: TileSize | None) -> Iterator[None]:
    """What is traced within takes this tile instead of its platform's; None changes nothing."""
    before = dict(TILES)
    TILES.update({} if tile is None else dict.fromkeys(TILES, tile))
    try:
        yield
    finally:
        TILES.update(before)


def worth_of(task: Task, implementation: str, ceilings: Ceilings | None) -> Any:
    """Seconds to TFLOP/s on the products that the implementation has to do."""
    flops = head_units(implementation, task.mode, kl=task.kl) * gemm_unit(*task.shape)
    return lambda seconds: of_products(flops, seconds, ceilings)


def make_inputs(task: Task, weights: Any) -> tuple[jax.Array, ...]:
    """Hidden states, weight, targets, and if there is a reference its hidden states and weight."""
    tokens, width, vocab = task.shape
    hidden = random(0, (tokens, width), jnp.bfloat16)
    weight = random(1, (vocab, width), weights) / width**0.5
    targets = jax.random.randint(jax.random.key(2), (tokens,), 0, vocab)
    if not task.kl:
        return hidden, weight, targets
    ref_weight = random(4, (vocab, width), weights) / width**0.5
    return hidden, weight, targets, random(3, (tokens, width), jnp.bfloat16), ref_weight


def _values(task: Task, implementation: Any) -> Any:
    def values(hidden: jax.Array, weight: jax.Array, targets: jax.Array, *ref: Any) -> LogprobOut:
        given = {"want": WANTED[task.wanted], "ref": ref or None, "implementation": implementation}
        return linear_logprobs(hidden, weight, targets, **given)

    return values


def _loss(task: Task, implementation: str) -> Any:
    def total(out: LogprobOut, count: Any) -> jax.Array:
        fields = out._asdict()
        return sum((COEFFICIENTS[name] * jnp.sum(fields[name]) for name in WANTED[task.wanted]), jnp.zeros(())) / count

    def linear(hidden: jax.Array, weight: jax.Array, targets: jax.Array, *ref: Any) -> jax.Array:
        return total(_values(task, implementation)(hidden, weight, targets, *ref), float(task.shape.tokens))

    def fused(hidden: jax.Array, weight: jax.Array, targets: jax.Array, *ref: Any) -> jax.Array:
        def loss_fn(out: LogprobOut, mask: Any, aux: Any, count: Any) -> tuple[jax.Array, Any]:
            del mask, aux
            return total(out, count), {}

        count, want = jnp.float32(task.shape.tokens), WANTED[task.wanted]
        return fused_token_loss(loss_fn, hidden, weight, targets, given=count, want=want, ref=ref or None)[0]

    return fused if implementation == "fused" else linear


def _products(task: Task, ceilings: Ceilings | None, inputs: Callable[..., Any]) -> Contestant:
    """The bare products of what keeps its logits: a floor that nothing which keeps them goes under."""

    def products(hidden: jax.Array, weight: jax.Array, draw: jax.Array | None) -> Any:
        if draw is None:
            return jnp.einsum("nd,vd->nv", hidden, weight)
        logits = jnp.einsum("nd,vd->nv", hidden, weight)
        return logits, jnp.einsum("nv,vd->nd", draw, weight), jnp.einsum("nv,nd->vd", draw, hidden)

    def prepare() -> Runner:
        hidden, weight, *_ = inputs(jnp.bfloat16)
        size = (task.shape.tokens, task.shape.vocab)
        return ready(products, hidden, weight, None if task.mode == "fwd" else random(5, size, jnp.bfloat16))

    worth = worth_of(task, "products", ceilings)
    return Contestant(row=task.row | {"implementation": "bare products"}, prepare=prepare, worth=worth)


def _peers(task: Task, ceilings: Ceilings | None, *, compile_torch: bool) -> list[Contestant]:
    if importlib.util.find_spec("torch") is None:
        return []
    from benchmarks.device_check.head_torch import runner

    names = ["torch", "torch, float32 logits", *(["torch.compile"] if compile_torch else [])]
    names += ["liger"] if task.mode == "fwd+bwd" else []
    return [
        Contestant(
            row=task.row | {"implementation": name},
            prepare=lambda name=name: runner(task, name),
            worth=worth_of(task, name, ceilings),
        )
        for name in names
    ]
