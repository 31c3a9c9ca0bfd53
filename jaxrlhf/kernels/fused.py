"""A loss a token, from hidden states and the unembedding, with its gradient formed in the forward pass.

A loss that adds up over tokens needs no second look at the logits: while those of some rows are at hand, the cotangents
of their outputs follow from the loss itself, and with them the gradients. That is three matrix products instead of the
four of `linear_logprobs` and its backward pass, for the logits of one tile of rows, [n, V], in memory. Liger's kernels
do it for cross-entropy (Hsu et al. 2024); here the loss is any function of the outputs.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxrlhf.kernels.chunked import forward
from jaxrlhf.kernels.division import combine_vocabulary, merge_rows, most_rows, row_spec, spread, sum_rows, whole_spec
from jaxrlhf.kernels.inputs import Given, Side, take_inputs
from jaxrlhf.kernels.plan import Plan, gather_gradient, input_specs, make_plan, narrowed, place, side_specs
from jaxrlhf.kernels.rowwise import Extra, TokenLossFn, call_loss, loss_and_gradient
from jaxrlhf.kernels.tiles import into_places
from jaxrlhf.types import Head, Metrics


def fused_token_loss(
    loss_fn: TokenLossFn,
    hidden: jax.Array,
    head: Head | jax.Array,
    targets: jax.Array,
    aux: Any = None,
    given: Any = None,
    *,
    want: Sequence[str] = ("logp",),
    mask: jax.Array | None = None,
    ref: tuple[jax.Array, Head | jax.Array] | None = None,
    temperature: jax.Array | float | None = None,
) -> tuple[jax.Array, Metrics]:
    """A loss that adds up over tokens, of `linear_logprobs`' outputs; its gradient costs three products, not four.

    The same as `loss_fn(linear_logprobs(...), mask, aux, given)` in value, and in the gradient by `hidden` and head; no
    gradient flows to anything else, and none from the metrics.

    Args:
        loss_fn: `loss_fn(out, mask, aux, given) -> (scalar, metrics)`. It is called on [1, n] arrays of some of the
            tokens, in any order, and the results are added up: what it divides by must not depend on them. The losses
            of `losses` need their `denom`, and averages within answers weights a token (`steps.grpo.token_weights`).
            Where the mask is False it finds zeros, which must add nothing. What it reads comes by `aux` and `given`: an
            array that it closes over must not be differentiated by.
        hidden: [..., D] float array.
        head: `Head`, or its weight [V, D] alone.
        targets: [...] int array.
        aux: pytree of arrays [...] that belong to tokens: advantages, log-probabilities when they were sampled.
        given: pytree of arrays that do not: denominators, coefficients.
        want: which fields of `LogprobOut` the loss reads.
        mask: [...] bool array; the tokens that count. The others are not computed.
        ref: as for `linear_logprobs`; no gradient flows to it.
        temperature: as for `linear_logprobs`.

    Returns:
        Scalar float32 loss, and the merged metrics.

    Raises:
        ValueError: as for `linear_logprobs`; for arrays in `aux` that do not begin with the shape of `targets`; for a
            loss that returns anything but a float32 scalar and metrics that add up, or asks `ops.masked` for what only
            the whole batch can tell: a mean without its `denom`, a sum for each row.

    Example:
        A policy gradient. The tokens are counted outside: `loss_fn` sees some of them at a time.

            from jaxrlhf.ops import mean_of

            def loss_fn(out, mask, advantages, tokens):
                loss = -jnp.sum(out.logp * advantages) / tokens
                return loss, {"entropy": mean_of(out.entropy, mask)}

            loss, metrics = fused_token_loss(
                loss_fn, hidden, head, targets, advantages, mask.sum(), want=("logp", "entropy"), mask=mask
            )

        With one of `losses`: `lm_loss(out.logp, mask, denom=tokens)`.
    """
    sides, taken, wanted = take_inputs(hidden, head, targets, want=want, mask=mask, ref=ref, temperature=temperature)
    aux, given = jax.tree.map(jnp.asarray, (aux, given))
    shape = jnp.shape(targets)
    for path, leaf in jax.tree.leaves_with_path(aux):
        if leaf.shape[: len(shape)] != shape:
            name = "aux" + jax.tree_util.keystr(path)
            raise ValueError(f"{name} is {list(leaf.shape)}; expected {list(shape)} first, the shape of targets")
    count = math.prod(shape)
    flat = jax.tree.map(lambda leaf: leaf.reshape(count, *leaf.shape[len(shape) :]), aux)
    extra = Extra(jnp.ones(count, bool) if taken.mask is None else taken.mask, flat, given)
    sides, taken, extra = (sides[0], *jax.lax.stop_gradient(sides[1:])), *jax.lax.stop_gradient((taken, extra))
    return _fused(loss_fn, make_plan(sides, wanted, 1, holds_logits=True), sides, taken, extra)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _fused(
    loss_fn: TokenLossFn, plan: Plan, sides: tuple[Side, ...], given: Given, extra: Extra
) -> tuple[jax.Array, Metrics]:
    """Without a gradient to form: the outputs, and the loss of all tokens."""

    def body(sides: tuple[Side, ...], given: Given, extra: Extra) -> tuple[jax.Array, Metrics]:
        out, _ = forward(plan, sides, given)
        loss, metrics = call_loss(loss_fn, out, extra)
        return sum_rows(loss, plan.over), merge_rows(metrics, plan.over)

    run = spread(body, plan.over, _specs(plan, sides, given), whole_spec())
    return run(narrowed(sides, plan.over), given, extra)


def _forward(
    loss_fn: TokenLossFn, plan: Plan, sides: tuple[Side, ...], given: Given, extra: Extra
) -> tuple[tuple[jax.Array, Metrics], Any]:
    def body(sides: tuple[Side, ...], given: Given, extra: Extra) -> tuple[jax.Array, Metrics, Side]:
        of = place(sides, given, plan)
        of = of._replace(rows=of.rows._replace(tiles=most_rows(of.rows.tiles, plan.over)))
        placed = Extra(*into_places(of.rows, (extra.mask, extra.aux)), extra.given)
        found = loss_and_gradient(loss_fn, of, placed, lambda stats: combine_vocabulary(stats, plan.over))
        return (
            sum_rows(found.loss, plan.over),
            merge_rows(found.metrics, plan.over),
            gather_gradient(found.gradient, sides[0], of.rows, plan.over),
        )

    out_specs = (whole_spec(), whole_spec(), *side_specs(sides[:1], plan.over))
    run = spread(body, plan.over, _specs(plan, sides, given), out_specs)
    loss, metrics, gradient = run(narrowed(sides, plan.over), given, extra)
    gradient = jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), gradient, sides[0])
    return (loss, metrics), (gradient, len(sides))


def _backward(loss_fn: TokenLossFn, plan: Plan, residuals: Any, cotangent: Any) -> tuple[Any, None, None]:
    del loss_fn, plan
    gradient, sides = residuals
    scaled = jax.tree.map(lambda leaf: (leaf * cotangent[0]).astype(leaf.dtype), gradient)
    return (scaled, *(None,) * (sides - 1)), None, None


_fused.defvjp(_forward, _backward)


def _specs(plan: Plan, sides: tuple[Side, ...], given: Given) -> tuple[Any, ...]:
    by_rows = row_spec(plan.over)
    return *input_specs(sides, given, plan.over), Extra(by_rows, by_rows, whole_spec())
