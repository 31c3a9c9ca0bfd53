"""The section `correctness`, its first half: the head against float64 on ragged shapes, values and gradients."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.device_check import oracle
from benchmarks.device_check.contest import attempt
from benchmarks.device_check.oracle import Case
from benchmarks.device_check.shapes import HeadShape, Shapes
from benchmarks.device_check.sheet import Row, Sheet
from jaxrlhf.kernels import fused_token_loss, linear_logprobs
from jaxrlhf.types import Head, LogprobOut

BOUNDS = {
    "float32": {"value": 5e-6, "loss": 5e-6, "gradient": 2e-6},
    "bfloat16": {"value": 1e-5, "loss": 1e-5, "gradient": 5e-3},
}
"""Values and loss absolute; gradients by the norm of the difference over the norm. bfloat16: of the same operands."""

CLOSE_KL = 3e-8
"""Bound of the KL where policy and reference are close, below 1e-2 nats, in float32."""

ROUNDED = {"float32": "float32, HIGHEST", "bfloat16": "bfloat16"}
"""How the library asks for its products; what float32 products are otherwise is a row of its own."""

WEIGHTS = {"logp": -1.0, "lse": 0.01, "entropy": -0.1, "kl": 0.5}
"""What the loss is made of, times a random number of each token."""

Outcome = tuple[dict[str, Any], Any, Any, Any]  # fields, loss, gradients by hidden states and by weight


def measure(sheet: Sheet, shapes: Shapes) -> None:
    """Writes a row for each shape, dtype and implementation, and one on how float32 products are rounded."""
    _rounding(sheet, shapes)
    for shape in shapes.ragged:
        for dtype in BOUNDS:
            for options in (False, True) if shape == shapes.ragged[1] else (False,):
                _all_implementations(sheet, shape, dtype, options=options)


def make_case(shape: HeadShape, dtype: str, *, options: bool) -> Case:
    """A random input that the dtype holds exactly; the reference is close to the policy, and every fifth row masked."""
    rng = np.random.default_rng(0)

    def rounded(array: np.ndarray) -> np.ndarray:
        return np.asarray(jnp.asarray(array, dtype).astype(jnp.float32), np.float64)

    hidden, noise = rng.normal(size=(2, shape.tokens, shape.width))
    weight = rng.normal(size=(shape.vocab, shape.width)) / shape.width**0.5
    return Case(
        hidden=rounded(hidden),
        weight=rounded(weight),
        targets=np.append(rng.integers(shape.vocab, size=shape.tokens - 1), shape.vocab - 1),
        mask=np.arange(shape.tokens) % 5 != 3,
        ref_hidden=rounded(hidden + 0.05 * noise),
        ref_weight=rounded(weight),
        bias=rounded(rng.normal(size=shape.vocab)) if options else None,
        softcap=5.0 if options else None,
        temperature=0.7 if options else 1.0,
    )


def errors_of(case: Case, outcome: Outcome, amounts: np.ndarray, dtype: str) -> tuple[dict[str, float], Row]:
    """How far an outcome is from float64, and the bounds.

    Args:
        case: the input.
        outcome: of an implementation; the fields are empty where it returns none.
        amounts: [N], what each token's part of the loss is multiplied by.
        dtype: of the operands.

    Returns:
        Name -> error, and name -> bound.
    """
    found, loss, by_hidden, by_weight = outcome
    true = oracle.values(case)
    parts = {name: weight * amounts for name, weight in WEIGHTS.items()}
    true_hidden, true_weight = oracle.gradients(case, parts)
    errors = {name: _largest(field, true[name]) for name, field in found.items()}
    errors |= {"loss": _largest(loss, sum(np.sum(parts[name] * true[name]) for name in WEIGHTS))}
    errors |= {"hidden": _relative(by_hidden, true_hidden), "weight": _relative(by_weight, true_weight)}
    bounds = {name: BOUNDS[dtype]["value"] for name in found} | {"loss": BOUNDS[dtype]["loss"]}
    if dtype == "float32" and "kl" in found and true["kl"].max() < 1e-2:
        bounds["kl"] = CLOSE_KL
    return errors, bounds | dict.fromkeys(("hidden", "weight"), BOUNDS[dtype]["gradient"])


def verdict(errors: Mapping[str, float], bounds: Mapping[str, float]) -> Row:
    """`ok`, what is nearest to its bound or furthest beyond it as `worst`, and all of it. A NaN is never within one."""
    shares = {name: error / bounds[name] for name, error in errors.items()}
    worst = max(shares, key=lambda name: np.inf if np.isnan(shares[name]) else shares[name])
    text = f"{worst} {errors[worst]:.1e} of {bounds[worst]:.0e}"
    ok = all(error <= bounds[name] for name, error in errors.items())
    return {"ok": ok, "worst": text, "errors": dict(errors), "bounds": dict(bounds)}


def _all_implementations(sheet: Sheet, shape: HeadShape, dtype: str, *, options: bool) -> None:
    case = make_case(shape, dtype, options=options)
    amounts = np.random.default_rng(1).normal(size=shape.tokens).astype(np.float32) / shape.tokens
    for implementation in ("chunked", "fused", "reference"):
        row = {
            "name": "head, softcap, bias, temperature" if options else "head",
            "shape": str(shape),
            "dtype": ROUNDED[dtype],
            "implementation": implementation,
        }

        def work(implementation: str = implementation) -> Row:
            outcome = outcome_of(case, jnp.asarray(amounts), dtype, implementation)
            return verdict(*errors_of(case, outcome, amounts.astype(np.float64), dtype))

        done = attempt(sheet, row, work)
        if done is not None:
            sheet.add(**row, **done[0], seconds=done[1])


def outcome_of(case: Case, amounts: jax.Array, dtype: str, implementation: str) -> Outcome:
    """Runs an implementation, values and gradients in one program; masked hidden states are NaN."""
    arrays = {
        "targets": jnp.asarray(case.targets, jnp.int32),
        "mask": jnp.asarray(case.mask),
        "amounts": amounts,
        "ref": (jnp.asarray(case.ref_hidden, dtype), jnp.asarray(case.ref_weight, dtype)),
        "bias": None if case.bias is None else jnp.asarray(case.bias, jnp.float32),
        "temperature": jnp.float32(case.temperature),
    }
    run = _fused if implementation == "fused" else functools.partial(_linear, implementation)

    # All arrays are arguments: of constants the compiler would compute the logits itself, for minutes.
    def loss(hidden: jax.Array, weight: jax.Array, arrays: Mapping[str, Any]) -> tuple[jax.Array, dict[str, jax.Array]]:
        return run(hidden, Head(weight=weight, bias=arrays["bias"], softcap=case.softcap), arrays)

    hidden = jnp.asarray(np.where(case.mask[:, None], case.hidden, np.nan), dtype)
    compiled = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    (value, fields), gradients = compiled(hidden, jnp.asarray(case.weight, dtype), arrays)
    return (fields, value, *gradients)


def _linear(implementation: Any, hidden: jax.Array, head: Head, arrays: Mapping[str, Any]) -> Any:
    given = {name: arrays[name] for name in ("ref", "mask", "temperature")}
    targets = arrays["targets"]
    out = linear_logprobs(hidden, head, targets, want=oracle.FIELDS, implementation=implementation, **given)
    fields = out._asdict()
    return _total(out, arrays["amounts"]), {name: fields[name] for name in oracle.FIELDS}


def _fused(hidden: jax.Array, head: Head, arrays: Mapping[str, Any]) -> Any:
    def loss_fn(out: LogprobOut, mask: jax.Array, amounts: jax.Array, given: Any) -> tuple[jax.Array, Any]:
        del mask, given  # what is masked is 0 in every field
        return _total(out, amounts), {}

    given = {name: arrays[name] for name in ("ref", "mask", "temperature")}
    return fused_token_loss(loss_fn, hidden, head, arrays["targets"], arrays["amounts"], want=tuple(WEIGHTS), **given)


def _total(out: LogprobOut, amounts: jax.Array) -> jax.Array:
    fields = out._asdict()
    return sum((weight * jnp.sum(amounts * fields[name]) for name, weight in WEIGHTS.items()), jnp.zeros(()))


def _rounding(sheet: Sheet, shapes: Shapes) -> None:
    """How far float32 products of this device are from float64, as they come and as the library asks for them."""
    side = min(512, shapes.squares[0])
    left, right = np.random.default_rng(0).normal(size=(2, side, side)).astype(np.float32)
    exact = left.astype(np.float64) @ right.astype(np.float64)
    products: dict[str, Callable[[], Any]] = {
        f"float32, {precision.name}": lambda p=precision: jnp.matmul(jnp.asarray(left), jnp.asarray(right), precision=p)
        for precision in (jax.lax.Precision.DEFAULT, jax.lax.Precision.HIGHEST)
    }
    for name, product in products.items():
        row = {"name": "rounding of products", "shape": f"{side} x {side} x {side}", "dtype": name}
        done = attempt(sheet, row, lambda product=product: _relative(product(), exact))
        if done is not None:
            sheet.add(**row, implementation="jax", worst=f"relative error {done[0]:.1e}", error=done[0])


def _largest(found: Any, true: Any) -> float:
    return float(np.max(np.abs(np.asarray(found, np.float64) - true)))


def _relative(found: Any, true: np.ndarray) -> float:
    found = np.asarray(jnp.asarray(found).astype(jnp.float32), np.float64)
    return float(np.linalg.norm(found - true) / np.linalg.norm(true))
