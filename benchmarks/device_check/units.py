"""What a measurement is worth: useful work, counted by hand, over the time it took. Plain arithmetic, without jax."""

from __future__ import annotations

from typing import Literal

Mode = Literal["fwd", "fwd+bwd"]
"""The values alone, or with their gradients by hidden states and weight."""

TERA, GIGA, MIB = 1e12, 1e9, 2**20


def gemm_unit(tokens: int, width: int, vocab: int) -> float:
    """FLOPs of one product of the head: hidden states [N, D] with an unembedding [V, D]."""
    return 2.0 * tokens * width * vocab


def head_units(implementation: str, mode: Mode, *, kl: bool) -> int:
    """Products of the head that an implementation has to do, in units of `gemm_unit`.

    A forward pass is one, and one more for the reference's logits if the KL is wanted. The gradients by hidden states
    and weight are two more. What keeps no logits computes them again for the backward pass; `fused_token_loss`, which
    forms the gradient while it has them, does not, and neither do implementations that keep them.

    Args:
        implementation: "chunked" is the only one that computes logits again; "reference", "fused" and other libraries
            do not.
        mode: what is computed.
        kl: whether the KL to a frozen reference is, too.
    """
    forward = 2 if kl else 1
    if mode == "fwd":
        return forward
    return forward + 2 + (forward if implementation == "chunked" else 0)


def train_flops(parameters: int, config: dict[str, int], rows: int, length: int) -> float:
    """FLOPs of a train step on full sequences: 6 a parameter and token, and causal attention; nothing recomputed.

    Args:
        parameters: of the model, a tied embedding counted once.
        config: `layers`, and `attention_width`, the query heads times their width.
        rows: sequences.
        length: tokens of each.
    """
    pairs = length * (length + 1) // 2  # of a query and a key that it sees
    attention = 3 * 2 * 2 * config["layers"] * config["attention_width"] * pairs * rows
    return 6.0 * parameters * rows * length + attention


def decode_bytes(weights: int, cache_token: int, batch: int, prompt: int, new: int) -> float:
    """Bytes that sampling has to read: for each new token after the first all weights, and the cache up to it.

    The first token comes from the prompt's forward pass, which is bound by arithmetic and not counted.

    Args:
        weights: bytes of the weights.
        cache_token: bytes of keys and values of one token in all layers.
        batch: rows.
        prompt: tokens of the prompt.
        new: tokens drawn for each row.
    """
    seen = sum(prompt + step for step in range(1, new))  # tokens in the cache at each step, over all steps
    return float(weights) * (new - 1) + float(cache_token) * batch * seen
