"""Batches of numpy arrays: what each method reads of an index."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxrlhf.data.index import Index
from jaxrlhf.data.prefixes import shared_rows
from jaxrlhf.data.shapes import Kind
from jaxrlhf.data.token_rows import MaskedIds, Width, token_rows
from jaxrlhf.types import PairBatch, PromptBatch, RankedBatch, TokenBatch, UnpairedBatch

BatchKind = Literal[
    "tokens",
    "pairs",
    "shared_pairs",
    "unpaired",
    "scored_pairs",
    "shared_scored_pairs",
    "scored_ranked",
    "shared_scored_ranked",
    "prompts",
]
"""SFT and perplexity; DPO; KTO; reward models on pairs; reward models on K answers; methods that sample answers. Of the
shared ones a row holds all answers to a prompt."""

Batch = TokenBatch | PairBatch | UnpairedBatch | RankedBatch | PromptBatch


class Layout(NamedTuple):
    """What a kind of batch is made of.

    Attributes:
        index_kinds: the kinds of index that it can be made from, the usual one first.
        shift: ids that a sequence loses when it is shifted.
        scores: whether one position a sequence counts, rather than all that are imitated.
        build: `build(index, units, width)`; unit -1 is an empty row.
        shared: whether a row holds all answers to a prompt, and the prompt once.
        arrange: from the units [B] of a whole global batch to what `build` takes, of which each process hands on its
            rows: the units themselves, unless a row also holds something of another.
    """

    index_kinds: tuple[Kind, ...]
    shift: int
    scores: bool
    build: Callable[[Index, np.ndarray, Width], Any]
    shared: bool = False
    arrange: Callable[[np.ndarray], np.ndarray] = lambda units: units


def token_batch(index: Index, units: np.ndarray, width: Width) -> TokenBatch:
    """Returns a batch for a model that predicts, [B, T]; a unit with several sequences is packed into one row.

    Args:
        index: an index of kind "sft".
        units: [B] int64; -1 is an empty row.
        width: T and C.

    Returns:
        The batch.
    """
    return token_rows([read_unit(index, int(unit)) for unit in units], 1, width)


def pair_batch(index: Index, units: np.ndarray, width: Width) -> PairBatch:
    """Returns pairs for a model that predicts, such as DPO's; arguments as for `token_batch`, index "preference"."""
    return PairBatch(answers=_apart(index, units, width, 2), margin=_margins(index, units))


def shared_pair_batch(index: Index, units: np.ndarray, width: Width) -> PairBatch:
    """Returns pairs as `pair_batch` does, both answers in one row behind what they have in common."""
    return PairBatch(answers=_together(index, units, width, 2), margin=_margins(index, units))


def with_neighbours(units: np.ndarray) -> np.ndarray:
    """Puts beside each unit of a global batch the nearest other one before it, the last standing before the first.

    Empty rows are passed over. In a batch of different units each is once its own and once a neighbour. (That two rows
    have the same prompt is not noticed; they are rarely next to each other in a shuffled order.)

    Args:
        units: [B] int64; -1 is an empty row.

    Returns:
        [B, 2] int64; the neighbour is -1 in an empty row, and where there is no other unit.
    """
    neighbours = np.full_like(units, -1)
    rows = np.flatnonzero(units >= 0)
    for shift in range(1, len(rows)):
        before = np.roll(units[rows], shift)
        found = np.where((neighbours[rows] < 0) & (before != units[rows]), before, neighbours[rows])
        neighbours[rows] = found
        if (found >= 0).all():
            break
    return np.stack([units, neighbours], axis=1)


def unpaired_batch(index: Index, units: np.ndarray, width: Width) -> UnpairedBatch:
    """Returns single answers for a model that predicts, such as KTO's, and prompts with their neighbours' answers.

    Args:
        index: an index of kind "unpaired".
        units: [B, 2] int64, of each row its own and its neighbour, from `with_neighbours`.
        width: T and C. A neighbour's answer that does not fit behind the prompt loses its end.

    Returns:
        The batch.
    """
    own, others = ([read_unit(index, int(unit)) for unit in column] for column in units.T)
    mismatched = [_mismatch(mine, other, width.tokens + 1) for mine, other in zip(own, others, strict=True)]
    return UnpairedBatch(
        answers=token_rows(own, 1, width),
        desirable=_array(np.where(units[:, 0] >= 0, index.desirable[units[:, 0]], False)),
        mismatched=token_rows(mismatched, 1, width),
    )


def scored_pair_batch(index: Index, units: np.ndarray, width: Width) -> PairBatch:
    """Returns pairs for a model that scores; arguments as for `token_batch`, index "preference"."""
    return PairBatch(answers=_apart(index, units, width, 2, scores=True), margin=_margins(index, units))


def shared_scored_pair_batch(index: Index, units: np.ndarray, width: Width) -> PairBatch:
    """Returns pairs as `scored_pair_batch` does, both answers in one row behind what they have in common."""
    return PairBatch(answers=_together(index, units, width, 2, scores=True), margin=_margins(index, units))


def scored_ranked_batch(index: Index, units: np.ndarray, width: Width) -> RankedBatch:
    """Returns K answers a prompt for a model that scores, K being the most in the index; absent answers have rank 0.

    Arguments as for `token_batch`, index "ranked" or "preference".
    """
    most = most_answers(index)
    answers = _apart(index, units, width, most, scores=True)
    return RankedBatch(answers=answers, ranks=_ranks(index, units, most))


def shared_scored_ranked_batch(index: Index, units: np.ndarray, width: Width) -> RankedBatch:
    """Returns K answers as `scored_ranked_batch` does, all in one row behind what they have in common."""
    most = most_answers(index)
    answers = _together(index, units, width, most, scores=True)
    return RankedBatch(answers=answers, ranks=_ranks(index, units, most))


def most_answers(index: Index) -> int:
    """The most answers that an example of the index has, K."""
    return int(np.diff(index.groups).max())


def prompt_batch(index: Index, units: np.ndarray, width: Width) -> PromptBatch:
    """Returns prompts padded on the left, [B, P]; `row_ids` are the units until the loader gives them others.

    Arguments as for `token_batch`, index "prompt".
    """
    tokens = np.zeros((len(units), width.tokens), np.int32)
    segment_ids = np.zeros_like(tokens)
    for row, unit in enumerate(units):
        for sequence in index.sequences_of(int(unit)):
            ids, _ = index.sequence(int(sequence))
            tokens[row, width.tokens - len(ids) :] = ids
            segment_ids[row, width.tokens - len(ids) :] = 1
    row_ids = np.asarray(units, np.int32)
    return PromptBatch(tokens=_array(tokens), segment_ids=_array(segment_ids), row_ids=_array(row_ids))


def read_unit(index: Index, unit: int, *, scores: bool = False) -> list[MaskedIds]:
    """The sequences of a unit, none for -1.

    Args:
        index: the index.
        unit: number of the unit.
        scores: for a model that scores, the mask is True at the last id alone, whatever is to be imitated.

    Returns:
        Ids and mask of each sequence.
    """
    sequences = [index.sequence(int(number)) for number in index.sequences_of(unit)]
    return [(ids, np.arange(1, len(ids) + 1) == len(ids)) for ids, _ in sequences] if scores else sequences


LAYOUTS: dict[BatchKind, Layout] = {
    "tokens": Layout(("sft",), 1, False, token_batch),
    "pairs": Layout(("preference",), 1, False, pair_batch),
    "shared_pairs": Layout(("preference",), 1, False, shared_pair_batch, shared=True),
    "unpaired": Layout(("unpaired",), 1, False, unpaired_batch, arrange=with_neighbours),
    "scored_pairs": Layout(("preference",), 0, True, scored_pair_batch),
    "shared_scored_pairs": Layout(("preference",), 0, True, shared_scored_pair_batch, shared=True),
    "scored_ranked": Layout(("ranked", "preference"), 0, True, scored_ranked_batch),
    "shared_scored_ranked": Layout(("ranked", "preference"), 0, True, shared_scored_ranked_batch, shared=True),
    "prompts": Layout(("prompt",), 0, False, prompt_batch),
}
"""Every kind of batch."""


def _apart(index: Index, units: np.ndarray, width: Width, most: int, *, scores: bool = False) -> TokenBatch:
    """The answers of each unit, each in a row of its own, filled up to `most` rows with empty ones: [B, most, T]."""
    answers = [read_unit(index, int(unit), scores=scores) for unit in units]
    rows = [owned[i : i + 1] for owned in answers for i in range(most)]
    batch = token_rows(rows, 0 if scores else 1, width)
    arrays = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
    grouped: dict[str, Any] = {name: x.reshape(-1, most, x.shape[-1]) for name, x in arrays.items() if x is not None}
    return TokenBatch(**grouped)


def _together(index: Index, units: np.ndarray, width: Width, most: int, *, scores: bool = False) -> TokenBatch:
    """The answers of each unit, at most `most`, in one row: [B, T], with `columns` [B, most, C]."""
    assert width.columns is not None
    answers = [read_unit(index, int(unit), scores=scores) for unit in units]
    return shared_rows(answers, 0 if scores else 1, answers=most, tokens=width.tokens, columns=width.columns)


def _mismatch(mine: list[MaskedIds], other: list[MaskedIds], most: int) -> list[MaskedIds]:
    """The prompt of one row and the answer of another, cut to `most` ids; a prompt and a token of an answer do fit."""
    if not mine or not other:
        return []
    (ids, mask), (other_ids, other_mask) = mine[0], other[0]
    prompt, answer = slice(int(mask.argmax())), slice(int(other_mask.argmax()), None)  # parted at the first trained id
    joined = np.concatenate([ids[prompt], other_ids[answer]]), np.concatenate([mask[prompt], other_mask[answer]])
    return [(joined[0][:most], joined[1][:most])]


def _ranks(index: Index, units: np.ndarray, most: int) -> Any:
    ranks = np.zeros((len(units), most), np.int32)
    for row, unit in enumerate(units):
        owned = index.sequences_of(int(unit))
        ranks[row, : len(owned)] = index.ranks[owned]
    return ranks


def _margins(index: Index, units: np.ndarray) -> Any:
    return np.where(units >= 0, index.margins[units], 0).astype(np.float32)


def _array(array: np.ndarray) -> Any:
    """Batches hold jax arrays in their annotations and, on the host, numpy arrays of the same shapes."""
    return array
