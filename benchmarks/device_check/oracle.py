"""What `linear_logprobs` should return, in float64 by numpy; gradients by their formula, not by autodiff."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

Array = np.ndarray

FIELDS = ("logp", "lse", "entropy", "kl", "ref_logp")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One input; arrays are float64, holding what the library is given in a narrower dtype.

    Attributes:
        hidden: [N, D].
        weight: [V, D].
        targets: [N] int.
        mask: [N] bool.
        ref_hidden: [N, D], the reference's.
        ref_weight: [V, D].
        bias: [V], of the policy, or None.
        softcap: of the policy, or None.
        temperature: of both.
    """

    hidden: Array
    weight: Array
    targets: Array
    mask: Array
    ref_hidden: Array
    ref_weight: Array
    bias: Array | None = None
    softcap: float | None = None
    temperature: float = 1.0


def values(case: Case) -> dict[str, Array]:
    """Each of `FIELDS` as [N], 0 outside the mask."""
    logp, _ = _log_softmax(case)
    ref = _log_softmax_of(case.ref_hidden @ case.ref_weight.T / case.temperature)
    z, _ = _logits(case)
    rows = np.arange(len(case.targets))
    p = np.exp(logp)
    found = {
        "logp": logp[rows, case.targets],
        "lse": z[:, 0] - logp[:, 0],
        "entropy": -np.sum(p * logp, axis=1),
        "kl": np.sum(p * (logp - ref), axis=1),
        "ref_logp": ref[rows, case.targets],
    }
    return {name: np.where(case.mask, field, 0.0) for name, field in found.items()}


def gradients(case: Case, weights: Mapping[str, Array]) -> tuple[Array, Array]:
    """Gradients of the sum over tokens and fields of `weights[field] * values[field]`.

    With g the weights, p and q the probabilities of policy and reference,

        dz_v = g_logp [v = target]
             + p_v (g_lse - g_logp - g_entropy (log p_v + entropy) + g_kl (log p_v - log q_v - kl)).

    Args:
        case: the input.
        weights: of `logp`, `lse`, `entropy` and `kl`, each [N].

    Returns:
        [N, D] by the hidden states and [V, D] by the weight.
    """
    logp, slope = _log_softmax(case)
    ref = _log_softmax_of(case.ref_hidden @ case.ref_weight.T / case.temperature)
    p, found = np.exp(logp), values(case)
    g = {name: np.where(case.mask, weight, 0.0)[:, None] for name, weight in weights.items()}
    factor = g["lse"] - g["logp"] - g["entropy"] * (logp + found["entropy"][:, None])
    factor = factor + g["kl"] * (logp - ref - found["kl"][:, None])
    dz = p * factor
    dz[np.arange(len(case.targets)), case.targets] += g["logp"][:, 0]
    dz = dz * slope / case.temperature
    return dz @ case.weight, dz.T @ case.hidden


def _logits(case: Case) -> tuple[Array, Array | float]:
    """The logits [N, V] over the temperature, and d(softcap)/d(raw logits)."""
    raw = case.hidden @ case.weight.T
    if case.bias is not None:
        raw = raw + case.bias[None, :]
    if case.softcap is None:
        return raw / case.temperature, 1.0
    tanh = np.tanh(raw / case.softcap)
    return case.softcap * tanh / case.temperature, 1.0 - tanh**2


def _log_softmax(case: Case) -> tuple[Array, Array | float]:
    z, slope = _logits(case)
    return _log_softmax_of(z), slope


def _log_softmax_of(z: Array) -> Array:
    shifted = z - z.max(axis=1, keepdims=True)
    return shifted - np.log(np.sum(np.exp(shifted), axis=1, keepdims=True))
