"""`SamplingSettings`: what an answer is sampled with, and the same as one number a row."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxrlhf.config_checks import Condition, check

Each = Any
"""A number for all rows, or an array [B] of one number a row."""

Ids = Any
"""A sequence of token ids for all rows, or an integer array [B, E] of each row's own, -1 where there is none."""

_IDS = 8
"""Lists of ids are as wide as a multiple of this, so that one of another length rarely compiles anything."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingSettings:
    """What the draws of a row depend on, besides its logits and its key. None of it recompiles anything.

    Words are filtered in the order of these fields' effects: repetition penalty, forbidden and early EOS words,
    temperature, top-k, top-p, min-p; see `filters.processed_logits`.

    Attributes:
        temperature: divides the logits; 0 takes the most likely token.
        top_k: draw among the k most likely tokens, and those that tie with the last; 0 means all.
        top_p: draw among the fewest tokens whose probability reaches p, above 0; 1 means all.
        min_p: draw among tokens at least min_p times as probable as the most likely one, in [0, 1]; 0 means all.
        repetition_penalty: divides the positive logits of words that the prompt or the answer holds, and multiplies
            the negative ones, positive; 1 changes nothing.
        min_new_tokens: tokens that an answer has before it may end by an EOS token.
        max_new_tokens: tokens of the longest answer, at least 1; None means all that the sampler has room for.
        eos_ids: tokens that end an answer, and are its last.
        forbidden_ids: tokens that are never drawn.
    """

    temperature: Each = 1.0
    top_k: Each = 0
    top_p: Each = 1.0
    min_p: Each = 0.0
    repetition_penalty: Each = 1.0
    min_new_tokens: Each = 0
    max_new_tokens: Each | None = None
    eos_ids: Ids = ()
    forbidden_ids: Ids = ()


def per_row(settings: SamplingSettings, rows: int, room: int) -> SamplingSettings:
    """Checks settings on the host, and gives each row its own.

    Args:
        settings: numbers for all rows, or arrays of one a row.
        rows: rows B that the settings are for.
        room: tokens that the sampler has room for in an answer, positive.

    Returns:
        `SamplingSettings` of NumPy arrays: [B] float32 or int32, and ids [B, E] int32 with -1 where there is none, E a
        positive multiple of 8.

    Raises:
        TypeError: if a field holds no numbers, or fractions where whole ones are expected.
        ValueError: if a number is out of its range, or a field has numbers for another count of rows.
    """
    longest = room if settings.max_new_tokens is None else settings.max_new_tokens
    full = SamplingSettings(
        temperature=_numbers("temperature", settings.temperature, rows, np.float32),
        top_k=_numbers("top_k", settings.top_k, rows, np.int32),
        top_p=_numbers("top_p", settings.top_p, rows, np.float32),
        min_p=_numbers("min_p", settings.min_p, rows, np.float32),
        repetition_penalty=_numbers("repetition_penalty", settings.repetition_penalty, rows, np.float32),
        min_new_tokens=_numbers("min_new_tokens", settings.min_new_tokens, rows, np.int32),
        max_new_tokens=_numbers("max_new_tokens", longest, rows, np.int32),
        eos_ids=_ids("eos_ids", settings.eos_ids, rows),
        forbidden_ids=_ids("forbidden_ids", settings.forbidden_ids, rows),
    )
    longest = full.max_new_tokens
    check(
        full,
        _all(full, "temperature", lambda x: (x >= 0) & (x < np.inf), "must be finite and not negative"),
        _all(full, "top_k", lambda x: x >= 0, "must not be negative; 0 means all tokens"),
        _all(full, "top_p", lambda x: (x > 0) & (x <= 1), "must be above 0 and at most 1"),
        _all(full, "min_p", lambda x: (x >= 0) & (x <= 1), "must be in [0, 1]"),
        _all(full, "repetition_penalty", lambda x: (x > 0) & (x < np.inf), "must be positive and finite"),
        _all(full, "max_new_tokens", lambda x: x >= 1, "must be positive"),
        _all(full, "max_new_tokens", lambda x: x <= room, f"must be at most {room}, what the sampler has room for"),
        _all(full, "min_new_tokens", lambda x: (x >= 0) & (x <= longest), "must be in [0, max_new_tokens]"),
        _all(full, "eos_ids", lambda x: x >= -1, "is no token id"),
        _all(full, "forbidden_ids", lambda x: x >= -1, "is no token id"),
    )
    return full


def _numbers(name: str, value: Each, rows: int, dtype: Any) -> np.ndarray:
    """Returns [B] numbers of the field."""
    array = _typed(name, value, dtype)
    if array.shape not in ((), (rows,)):
        raise ValueError(f"{name} has shape {array.shape}; expected one number, or one for each of {rows} rows")
    return np.broadcast_to(array, (rows,)).copy()


def _ids(name: str, value: Ids, rows: int) -> np.ndarray:
    """Returns [B, E] ids of the field, padded with -1."""
    array = _typed(name, value if np.size(value) else np.zeros(np.shape(value), np.int32), np.int32)
    if array.ndim != 1 and (array.ndim != 2 or array.shape[0] != rows):
        raise ValueError(f"{name} has shape {array.shape}; expected a list of ids, or [{rows}, E] for {rows} rows")
    count = array.shape[-1]
    full = np.full((rows, max(_IDS, -(-count // _IDS) * _IDS)), -1, np.int32)
    full[:, :count] = array
    return full


def _typed(name: str, value: Any, dtype: Any) -> np.ndarray:
    array = np.asarray(value)
    whole = np.issubdtype(dtype, np.integer)
    if array.dtype.kind not in ("iu" if whole else "iuf"):
        raise TypeError(f"{name}={value!r} must be {'whole numbers' if whole else 'numbers'}")
    if whole and array.size and max(abs(int(array.min())), abs(int(array.max()))) > np.iinfo(dtype).max:
        raise ValueError(f"{name}={value!r} is out of the range of 32 bits")
    return array.astype(dtype)


def _all(full: SamplingSettings, name: str, holds: Callable[[np.ndarray], np.ndarray], expected: str) -> Condition:
    """The condition that something holds for all numbers of a field; the message shows the first that it does not."""
    values = getattr(full, name)
    wrong = np.argwhere(~holds(values))
    if not len(wrong):
        return True, ""
    row = "" if len({int(place[0]) for place in wrong}) == len(values) else f" (row {wrong[0][0]})"
    return False, f"{name}={values[tuple(wrong[0])]!s}{row} {expected}"
