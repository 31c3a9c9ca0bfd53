"""`linear_logprobs`: the one way from hidden states to log-probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp

from jaxrlhf.kernels.chunked import chunked_logprobs
from jaxrlhf.kernels.inputs import take_inputs
from jaxrlhf.kernels.reference import reference_logprobs
from jaxrlhf.types import Head, LogprobOut

Implementation = Literal["reference", "chunked"]

_IMPLEMENTATIONS = {"reference": reference_logprobs, "chunked": chunked_logprobs}


def linear_logprobs(
    hidden: jax.Array,
    head: Head | jax.Array,
    targets: jax.Array,
    *,
    want: Sequence[str] = ("logp",),
    mask: jax.Array | None = None,
    ref: tuple[jax.Array, Head | jax.Array] | None = None,
    ref_grad: bool = False,
    temperature: jax.Array | float | None = None,
    implementation: Implementation | None = None,
) -> LogprobOut:
    """Log-probability of each target, and statistics of its distribution, from hidden states and the unembedding.

    The distribution is softmax(logits / temperature) with logits = softcap(scale * hidden @ weight.T + bias); sums are
    float32 whatever the inputs are. Differentiable in `hidden`, the head's weight and its bias, through every output
    but `max_logit`; not in `temperature`. The KL is that of whole distributions,

        KL(p || q) = sum_v p_v (log p_v - log q_v),    dKL/dz_v = p_v (log p_v - log q_v - KL),

    and costs a second set of logits, in the backward pass too, so ask for it where a loss reads it; estimates from
    `logp` and `ref_logp` of sampled targets (`losses.kl`) do without. A loss that adds up over tokens is cheaper by
    `fused_token_loss`.

    On a mesh that `jax.set_mesh` has set, rows are divided over ("data", "fsdp") and the vocabulary over "tensor",
    where they divide evenly.

    Args:
        hidden: [..., D] float array.
        head: `Head`, or its weight [V, D] alone.
        targets: [...] int array, from 0 to below the vocabulary's size; a padded row of the head has logp -inf, and so
            has what is no word: mask labels of -100.
        want: which fields of `LogprobOut` to compute; the others are None and cost nothing.
        mask: [...] bool array; where it is False the outputs are 0, no gradient flows, and `hidden` may be anything.
            Such rows are not computed.
        ref: the reference's hidden states [..., D'] and its head, of the same vocabulary; needed for `kl` and
            `ref_logp`, and only then.
        ref_grad: whether gradient flows to the reference as well.
        temperature: positive scalar, of policy and reference; may be traced; None means 1.
        implementation: "chunked" walks the vocabulary in tiles and never holds [..., V]; "reference" materialises the
            logits and is the truth that the others are tested against; None chooses.

    Returns:
        `LogprobOut` of float32 arrays with the shape of `targets`.

    Raises:
        ValueError: for an unknown field of `want`, or an unknown implementation; for a reference that is missing, not
            read, or of another vocabulary; for `ref_grad` without a reference; for shapes that do not fit, targets that
            are not integers, a mask that is not bool.
    """
    run = _IMPLEMENTATIONS.get("chunked" if implementation is None else implementation)
    if run is None:
        raise ValueError(f"implementation={implementation!r} is unknown; choose among {sorted(_IMPLEMENTATIONS)}")
    if ref_grad and ref is None:
        raise ValueError("ref_grad=True needs a reference to give a gradient to; give ref, or leave ref_grad out")
    sides, given, wanted = take_inputs(hidden, head, targets, want=want, mask=mask, ref=ref, temperature=temperature)
    if not ref_grad:
        sides = (sides[0], *jax.lax.stop_gradient(sides[1:]))
    out = run(sides, given, wanted, 2 if ref_grad else 1)

    def finish(field: jax.Array | None) -> jax.Array | None:
        if field is None:
            return None
        field = field.reshape(targets.shape)
        return field if mask is None else jnp.where(mask, field, 0.0)

    return LogprobOut(*map(finish, out))
