"""The arguments of the hot path: checked, and as rows [N, D]."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrlhf.types import Head, LogprobOut

FIELDS = LogprobOut._fields
OF_REFERENCE = ("kl", "ref_logp")


class Side(NamedTuple):
    """One model: hidden states [N, D] and its head."""

    hidden: jax.Array
    head: Head


class Given(NamedTuple):
    """What takes no gradient.

    Attributes:
        targets: [N] int32.
        mask: [N] bool, or None.
        temperature: float32 scalar.
    """

    targets: jax.Array
    mask: jax.Array | None
    temperature: jax.Array


class Inputs(NamedTuple):
    """Checked arguments.

    Attributes:
        sides: of the policy, and of the reference if there is one.
        given: what takes no gradient.
        want: the outputs.
    """

    sides: tuple[Side, ...]
    given: Given
    want: frozenset[str]


def take_inputs(
    hidden: jax.Array,
    head: Head | jax.Array,
    targets: jax.Array,
    *,
    want: Sequence[str],
    mask: jax.Array | None,
    ref: tuple[jax.Array, Head | jax.Array] | None,
    temperature: jax.Array | float | None,
) -> Inputs:
    """Checks the arguments of `linear_logprobs` and flattens their leading axes; its errors are raised here."""
    if isinstance(want, str):
        raise ValueError(f"want={want!r} is a string; expected a sequence of fields, such as ({want!r},)")
    unknown = [name for name in want if name not in FIELDS]
    if unknown:
        raise ValueError(f"want={tuple(want)} has unknown fields {unknown}; choose among {FIELDS}")
    read = [name for name in OF_REFERENCE if name in want]
    if read and ref is None:
        raise ValueError(f"want={tuple(want)} reads {read} of a reference; give ref=(its hidden states, its head)")
    if ref is not None and not read:
        raise ValueError(f"ref is given, but want={tuple(want)} reads nothing of it; want one of {OF_REFERENCE}")
    if ref is not None and not (isinstance(ref, tuple) and len(ref) == 2):
        raise ValueError("ref must be a pair: the reference's hidden states and its head")
    hidden, head, targets, mask, ref = jax.tree.map(jnp.asarray, (hidden, head, targets, mask, ref))  # numpy's too
    if not jnp.issubdtype(targets.dtype, jnp.integer):
        raise ValueError(f"targets are {targets.dtype}; expected ids of words, of an integer type")
    if mask is not None and (mask.shape != targets.shape or mask.dtype != bool):
        raise ValueError(f"mask is {_shape(mask)}; expected bool{list(targets.shape)}, one for each target")
    sides = (_side("hidden", hidden, head, targets, mask),)
    if ref is not None:
        sides += (_side("ref", *ref, targets, mask),)
    found, expected = _vocabulary(sides[-1].head), _vocabulary(sides[0].head)
    if found != expected:
        raise ValueError(
            f"the reference's head has {found[0]} words in {found[1]} rows, the policy's {expected[0]} in "
            f"{expected[1]}; a KL needs one vocabulary: pad both weights alike and set vocab_size to the real words"
        )
    heat = jax.lax.stop_gradient(jnp.asarray(1.0 if temperature is None else temperature, jnp.float32))
    if heat.ndim:
        raise ValueError(f"temperature is {_shape(heat)}; expected a scalar, which holds for every row")
    flat = Given(targets.reshape(-1), None if mask is None else mask.reshape(-1), heat)
    return Inputs(sides, flat, frozenset(want))


def _side(name: str, hidden: jax.Array, head: Head | jax.Array, targets: jax.Array, mask: jax.Array | None) -> Side:
    if not isinstance(head, Head | jax.Array):
        raise ValueError(f"the head of `{name}` is {type(head).__name__}; expected a Head, or its weight [V, D]")
    head = head if isinstance(head, Head) else Head(weight=head)
    if hidden.ndim != targets.ndim + 1 or hidden.shape[:-1] != targets.shape:
        raise ValueError(
            f"the hidden states `{name}` are {_shape(hidden)}; expected {list(targets.shape)}, the shape of "
            "targets, and one axis more"
        )
    if head.weight.ndim != 2 or head.weight.shape[1 - head.vocab_axis] != hidden.shape[-1]:
        form = "[V, D]" if head.layout == "vd" else "[D, V]"
        raise ValueError(
            f"the head's weight of `{name}` is {_shape(head.weight)}; expected {form} with D = {hidden.shape[-1]}, the "
            f"width of its hidden states (a weight of the other layout: Head(weight=..., layout=...))"
        )
    words, rows = _vocabulary(head)
    if not 0 < words <= rows:
        raise ValueError(f"the head of `{name}` has vocab_size={words}, but its weight has {rows} rows of words")
    if mask is not None:
        hidden = jnp.where(mask[..., None], hidden, 0)  # 0 * NaN is NaN in the gradient of the head
    return Side(hidden.reshape(-1, hidden.shape[-1]), head)


def _shape(array: jax.Array) -> str:
    return f"{array.dtype}{list(array.shape)}"


def _vocabulary(head: Head) -> tuple[int, int]:
    """Words, and rows of the head's weight."""
    return head.words, head.weight.shape[head.vocab_axis]
