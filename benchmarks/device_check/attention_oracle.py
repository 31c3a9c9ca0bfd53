"""What attention among the tokens of a row should return, in float64 by numpy; gradients by their formula."""

from __future__ import annotations

import dataclasses

import numpy as np

Array = np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One input; arrays are float64, holding what the library is given in a narrower dtype.

    Attributes:
        queries: [B, T, H, Dh].
        keys: [B, T, KH, Dh].
        values: [B, T, KH, Dh].
        segment_ids: [B, T] int, 0 at padding, whose results nobody reads.
        prefix_ids: [B, T] int, a second segment that each token sees, 0 if none; None means 0 everywhere.
        cotangents: [B, T, H, Dh], what the gradients start from; 0 at padding.
    """

    queries: Array
    keys: Array
    values: Array
    segment_ids: Array
    prefix_ids: Array | None
    cotangents: Array


def mixed(case: Case) -> Array:
    """The mixed values [B, T, H, Dh], 0 at padding."""
    weights, _, values = _parts(case)
    return np.where((case.segment_ids != 0)[:, :, None, None], _swap(weights @ values), 0.0)


def gradients(case: Case) -> tuple[Array, Array, Array]:
    """Gradients of the sum of `cotangents * mixed` by queries, keys and values.

    With P the weights, Q, K and V those of a head and G its cotangents, dV = P' G and, where dP = G V', the scores get

        dS = P * (dP - sum_s P dP) / sqrt(Dh),

    so that dQ = dS K and dK = dS' Q. Query heads that share keys and values add.
    """
    weights, keys, values = _parts(case)
    queries, cotangents = _swap(case.queries), _swap(case.cotangents)
    by_weights = cotangents @ values.mT
    by_scores = weights * (by_weights - np.sum(weights * by_weights, axis=-1, keepdims=True))
    by_scores = by_scores / case.queries.shape[-1] ** 0.5
    by_keys, by_values = by_scores.mT @ queries, weights.mT @ cotangents
    shared = case.keys.shape[2]
    return _swap(by_scores @ keys), _add_groups(_swap(by_keys), shared), _add_groups(_swap(by_values), shared)


def seen(case: Case) -> Array:
    """[B, T, T] bool, True where a token (row) sees another (column): itself, or an earlier one of its segments."""
    own = case.segment_ids[:, :, None] == case.segment_ids[:, None, :]
    if case.prefix_ids is not None:
        own = own | (case.prefix_ids[:, :, None] == case.segment_ids[:, None, :]) & (case.prefix_ids != 0)[:, :, None]
    return np.tril(own)


def _parts(case: Case) -> tuple[Array, Array, Array]:
    """Weights [B, H, T, T], and keys and values [B, H, T, Dh] of each query head."""
    groups = case.queries.shape[2] // case.keys.shape[2]
    keys, values = (np.repeat(_swap(part), groups, axis=1) for part in (case.keys, case.values))
    scores = _swap(case.queries) @ keys.mT / case.queries.shape[-1] ** 0.5
    scores = np.where(seen(case)[:, None], scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True), keys, values


def _add_groups(x: Array, shared: int) -> Array:
    """Adds the query heads of [B, T, H, Dh] that share one of `shared` heads of keys and values."""
    rows, tokens, heads, width = x.shape
    return x.reshape(rows, tokens, shared, heads // shared, width).sum(axis=3)


def _swap(x: Array) -> Array:
    """Tokens and heads, [B, T, H, Dh] to [B, H, T, Dh] or back."""
    return np.swapaxes(x, 1, 2)
