"""`linear_logprobs`: the one way from hidden states to log-probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import chex
import jax
import jax.numpy as jnp

from jaxrlhf.kernels.chunked import chunked_logprobs
from jaxrlhf.kernels.reference import Reference, reference_logprobs
from jaxrlhf.types import Head, LogprobOut

Implementation = Literal["reference", "chunked"]

FIELDS = LogprobOut._fields
OF_REFERENCE = ("kl", "ref_logp")

_IMPLEMENTATIONS = {"reference": reference_logprobs, "chunked": chunked_logprobs}


def linear_logprobs(
    hidden: jax.Array,
    head: Head | jax.Array,
    targets: jax.Array,
    *,
    want: Sequence[str] = ("logp",),
    mask: jax.Array | None = None,
    ref: tuple[jax.Array, Head | jax.Array] | None = None,
    temperature: jax.Array | float | None = None,
    implementation: Implementation | None = None,
) -> LogprobOut:
    """Log-probability of each target, and statistics of its distribution, from hidden states and the unembedding.

    The distribution is softmax(logits / temperature) with logits = softcap(scale * hidden @ weight.T + bias); sums are
    float32 whatever the inputs are. Differentiable in `hidden`, the head's weight and its bias, through every output
    but `max_logit` and `ref_logp`; not in `temperature`, nor in the reference. The KL is that of whole distributions,

        KL(p || q) = sum_v p_v (log p_v - log q_v),    dKL/dz_v = p_v (log p_v - log q_v - KL),

    and costs a second set of logits, in the backward pass too, so ask for it where a loss reads it; estimates from
    `logp` and `ref_logp` of sampled targets (`losses.kl`) do without.

    Args:
        hidden: [..., D] float array.
        head: `Head`, or its weight [V, D] alone.
        targets: [...] int array, from 0 to below the vocabulary's size; a padded row of the head has logp -inf.
        want: which fields of `LogprobOut` to compute; the others are None and cost nothing.
        mask: [...] bool array; where it is False the outputs are 0, no gradient flows, and `hidden` may be anything.
        ref: the reference's hidden states [..., D'] and its head, of the same vocabulary; needed for `kl` and
            `ref_logp`, and only then. No gradient flows to it.
        temperature: scalar, of policy and reference; may be traced; None means 1.
        implementation: "chunked" walks the vocabulary in blocks and never holds [..., V]; "reference" materialises the
            logits and is the truth that the others are tested against; None chooses.

    Returns:
        `LogprobOut` of float32 arrays with the shape of `targets`.

    Raises:
        ValueError: for an unknown field of `want`, or an unknown implementation; for a reference that is missing, not
            read, or of another vocabulary.
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
    read = [name for name in OF_REFERENCE if name in want]
    if read and ref is None:
        raise ValueError(f"want={tuple(want)} reads {read} of a reference; give ref=(its hidden states, its head)")
    if ref is not None and not read:
        raise ValueError(f"ref is given, but want={tuple(want)} reads nothing of it; want one of {OF_REFERENCE}")

    if mask is not None:
        chex.assert_equal_shape([mask, targets])
    scale = jnp.asarray(1.0 if temperature is None else temperature, jnp.float32)
    frozen = None if ref is None else _frozen(ref, head, targets, mask)
    rows = _rows(hidden, mask)
    out = run(rows, head, targets.reshape(-1), jax.lax.stop_gradient(scale), frozenset(want), frozen)
    return LogprobOut(*(_finish(field, targets.shape, mask) for field in out))


def _frozen(
    ref: tuple[jax.Array, Head | jax.Array], head: Head, targets: jax.Array, mask: jax.Array | None
) -> Reference:
    """The checked reference as [N, D'] rows and a `Head`, cut off from gradients."""
    hidden, ref_head = ref
    ref_head = ref_head if isinstance(ref_head, Head) else Head(weight=ref_head)
    chex.assert_rank(hidden, targets.ndim + 1)
    chex.assert_equal_shape_prefix([hidden, targets], targets.ndim)
    chex.assert_axis_dimension(ref_head.weight, 1, hidden.shape[-1])
    found, expected = _vocabulary(ref_head), _vocabulary(head)
    if found != expected:
        raise ValueError(
            f"the reference's head has {found[0]} words in {found[1]} rows, the policy's {expected[0]} in "
            f"{expected[1]}; a KL needs one vocabulary: pad both weights alike and set vocab_size to the real words"
        )
    return jax.lax.stop_gradient((_rows(hidden, mask), ref_head))


def _vocabulary(head: Head) -> tuple[int, int]:
    """Real rows of the head's weight, and all rows."""
    rows = head.weight.shape[0]
    return rows if head.vocab_size is None else head.vocab_size, rows


def _rows(hidden: jax.Array, mask: jax.Array | None) -> jax.Array:
    """Hidden states as [N, D]; 0 where they are masked, since 0 * NaN is NaN in the gradient of the head."""
    if mask is not None:
        hidden = jnp.where(mask[..., None], hidden, 0)
    return hidden.reshape(-1, hidden.shape[-1])


def _finish(field: jax.Array | None, shape: tuple[int, ...], mask: jax.Array | None) -> jax.Array | None:
    if field is None:
        return None
    field = field.reshape(shape)
    return field if mask is None else jnp.where(mask, field, 0.0)
