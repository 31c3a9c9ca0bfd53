"""`linear_logprobs`: the one way from hidden states to log-probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import chex
import jax
import jax.numpy as jnp

from jaxrlhf.kernels.chunked import chunked_logprobs
from jaxrlhf.kernels.reference import reference_logprobs
from jaxrlhf.types import Head, LogprobOut

Implementation = Literal["reference", "chunked"]

FIELDS = LogprobOut._fields

_IMPLEMENTATIONS = {"reference": reference_logprobs, "chunked": chunked_logprobs}


def linear_logprobs(
    hidden: jax.Array,
    head: Head | jax.Array,
    targets: jax.Array,
    *,
    want: Sequence[str] = ("logp",),
    mask: jax.Array | None = None,
    temperature: jax.Array | float | None = None,
    implementation: Implementation | None = None,
) -> LogprobOut:
    """Log-probability of each target, and statistics of its distribution, from hidden states and the unembedding.

    The distribution is softmax(logits / temperature) with logits = softcap(scale * hidden @ weight.T + bias); sums are
    float32 whatever the inputs are. Differentiable in `hidden`, the head's weight and its bias, through every output
    but `max_logit`; not in `temperature`.

    Args:
        hidden: [..., D] float array.
        head: `Head`, or its weight [V, D] alone.
        targets: [...] int array, from 0 to below the vocabulary's size; a padded row of the head has logp -inf.
        want: which fields of `LogprobOut` to compute; the others are None and cost nothing.
        mask: [...] bool array; where it is False the outputs are 0, no gradient flows, and `hidden` may be anything.
        temperature: scalar, may be traced; None means 1.
        implementation: "chunked" walks the vocabulary in blocks and never holds [..., V]; "reference" materialises the
            logits and is the truth that the others are tested against; None chooses.

    Returns:
        `LogprobOut` of float32 arrays with the shape of `targets`.

    Raises:
        ValueError: for an unknown field of `want`, or an unknown implementation.
    """
    head = head if isinstance(head, Head) else Head(weight=head)
    chex.assert_rank(hidden, targets.ndim + 1)
    chex.assert_equal_shape_prefix([hidden, targets], targets.ndim)
    chex.assert_axis_dimension(head.weight, 1, hidden.shape[-1])
    unknown = [name for name in want if name not in FIELDS]
    if unknown:
        raise ValueError(f"want={tuple(want)} has unknown fields {unknown}; choose among {FIELDS}")
    run = _IMPLEMENTATIONS.get("chunked" if implementation is None else implementation)
    if run is None:
        raise ValueError(f"implementation={implementation!r} is unknown; choose among {sorted(_IMPLEMENTATIONS)}")

    if mask is not None:
        chex.assert_equal_shape([mask, targets])
        hidden = jnp.where(mask[..., None], hidden, 0)  # 0 * NaN is NaN in the gradient of the head
    rows = hidden.reshape(-1, hidden.shape[-1])
    scale = jnp.asarray(1.0 if temperature is None else temperature, jnp.float32)
    out = run(rows, head, targets.reshape(-1), jax.lax.stop_gradient(scale), frozenset(want))
    return LogprobOut(*(_finish(field, targets.shape, mask) for field in out))


def _finish(field: jax.Array | None, shape: tuple[int, ...], mask: jax.Array | None) -> jax.Array | None:
    if field is None:
        return None
    field = field.reshape(shape)
    return field if mask is None else jnp.where(mask, field, 0.0)
