"""Batches of numpy arrays, and the one place where inputs and targets are shifted.

A sequence of n ids gives n - 1 columns to a model that predicts: it reads `ids[:-1]`, the targets are `ids[1:]`, and
column t counts if id t + 1 is to be imitated. A model that scores reads all n ids and counts at the last.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxrlhf.data.index import Index
from jaxrlhf.data.prefixes import MaskedIds, shared_length, shared_rows
from jaxrlhf.data.shapes import Kind
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

_MULTIPLE = 8  # accelerators pad rows to this anyway
_MAX_COLUMN_SHARE = 0.75  # with more columns than this to read, picking them saves nothing


class Width(NamedTuple):
    """The static shape of a batch.

    Attributes:
        tokens: T, columns of a row.
        columns: C, columns that a loss reads (of a sequence, where rows are shared), or None for all.
    """

    tokens: int
    columns: int | None


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


def plan_widths(index: Index, kind: BatchKind, buckets: int = 1) -> tuple[Width, ...]:
    """Chooses the shapes that batches of an index may have.

    Args:
        index: the index.
        kind: the kind of batch.
        buckets: number of shapes at most, at least 1; they are quantiles of the lengths.

    Returns:
        Ascending shapes; the last holds every unit.

    Raises:
        ValueError: if the index does not suit the kind of batch.
    """
    layout = LAYOUTS[kind]
    if index.kind not in layout.index_kinds:
        raise ValueError(f"{kind!r} batches need an index of {' or '.join(layout.index_kinds)}, not of {index.kind!r}")
    lengths, columns = row_lengths(index, kind), _most_read(index, layout)
    quantiles = np.quantile(lengths, np.arange(1, buckets + 1) / buckets, method="inverted_cdf")
    widths = []
    for tokens in sorted({_round_up(int(length)) for length in quantiles}):
        most = _round_up(int(columns[lengths <= tokens].max()))
        picked = layout.shared or 0 < most < _MAX_COLUMN_SHARE * tokens
        widths.append(Width(tokens, most if picked else None))
    return tuple(widths)


def row_lengths(index: Index, kind: BatchKind) -> np.ndarray:
    """For each unit the columns of its longest row, without padding, [n_units] int64."""
    layout = LAYOUTS[kind]
    if layout.shared:
        return np.array([_unit_length(index, layout, unit) for unit in range(index.units)], np.int64)
    lengths = np.diff(index.offsets) - layout.shift
    return _of_units(index, lengths)


def choose_width(index: Index, kind: BatchKind, widths: Sequence[Width], units: np.ndarray) -> Width:
    """Returns the smallest shape that holds all units of a global batch, so that every process chooses the same.

    Args:
        index: the index.
        kind: the kind of batch.
        widths: ascending shapes, from `plan_widths`.
        units: [B] int64, the units of the whole batch; -1 is an empty row.

    Returns:
        The shape.
    """
    longest = max((_unit_length(index, LAYOUTS[kind], int(unit)) for unit in units if unit >= 0), default=0)
    return next(width for width in widths if width.tokens >= longest)


def token_batch(index: Index, units: np.ndarray, width: Width) -> TokenBatch:
    """Returns a batch for a model that predicts, [B, T]; a unit with several sequences is packed into one row.

    Args:
        index: an index of kind "sft".
        units: [B] int64; -1 is an empty row.
        width: T and C.

    Returns:
        The batch.
    """
    return _predict([_read(index, index.sequences_of(int(unit))) for unit in units], width)


def pair_batch(index: Index, units: np.ndarray, width: Width) -> PairBatch:
    """Returns pairs for a model that predicts, such as DPO's; arguments as for `token_batch`, index "preference"."""
    answers = _predict([_read(index, owned) for owned in _one_a_row(index, units, 2)], width)
    return PairBatch(answers=_group(answers, 2), margin=_margins(index, units))


def shared_pair_batch(index: Index, units: np.ndarray, width: Width) -> PairBatch:
    """Returns pairs as `pair_batch` does, both answers in one row behind what they have in common."""
    return PairBatch(answers=_shared(index, units, width, "shared_pairs", 2), margin=_margins(index, units))


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
    own = [_read(index, index.sequences_of(int(unit))) for unit in units[:, 0]]
    others = [_read(index, index.sequences_of(int(unit))) for unit in units[:, 1]]
    mismatched = [_mismatch(mine, other, width.tokens + 1) for mine, other in zip(own, others, strict=True)]
    return UnpairedBatch(
        answers=_predict(own, width),
        desirable=_array(np.where(units[:, 0] >= 0, index.desirable[units[:, 0]], False)),
        mismatched=_predict(mismatched, width),
    )


def scored_pair_batch(index: Index, units: np.ndarray, width: Width) -> PairBatch:
    """Returns pairs for a model that scores; arguments as for `token_batch`, index "preference"."""
    answers = _score(index, _one_a_row(index, units, 2), width)
    return PairBatch(answers=_group(answers, 2), margin=_margins(index, units))


def shared_scored_pair_batch(index: Index, units: np.ndarray, width: Width) -> PairBatch:
    """Returns pairs as `scored_pair_batch` does, both answers in one row behind what they have in common."""
    return PairBatch(answers=_shared(index, units, width, "shared_scored_pairs", 2), margin=_margins(index, units))


def scored_ranked_batch(index: Index, units: np.ndarray, width: Width) -> RankedBatch:
    """Returns K answers a prompt for a model that scores, K being the most in the index; absent answers have rank 0.

    Arguments as for `token_batch`, index "ranked" or "preference".
    """
    most = most_answers(index)
    answers = _score(index, _one_a_row(index, units, most), width)
    return RankedBatch(answers=_group(answers, most), ranks=_ranks(index, units, most))


def shared_scored_ranked_batch(index: Index, units: np.ndarray, width: Width) -> RankedBatch:
    """Returns K answers as `scored_ranked_batch` does, all in one row behind what they have in common."""
    most = most_answers(index)
    answers = _shared(index, units, width, "shared_scored_ranked", most)
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


def _read(index: Index, numbers: np.ndarray) -> list[MaskedIds]:
    return [index.sequence(int(number)) for number in numbers]


def _answers(index: Index, unit: int, layout: Layout) -> list[MaskedIds]:
    """The answers of a unit, with the mask at the last token alone for a model that scores."""
    answers = _read(index, index.sequences_of(unit))
    return [(ids, np.arange(1, len(ids) + 1) == len(ids)) for ids, _ in answers] if layout.scores else answers


def _shared(index: Index, units: np.ndarray, width: Width, kind: BatchKind, answers: int) -> TokenBatch:
    layout = LAYOUTS[kind]
    assert width.columns is not None
    rows = [_answers(index, int(unit), layout) for unit in units]
    return shared_rows(rows, layout.shift, answers=answers, tokens=width.tokens, columns=width.columns)


def _mismatch(mine: list[MaskedIds], other: list[MaskedIds], most: int) -> list[MaskedIds]:
    """The prompt of one row and the answer of another, cut to `most` ids; a prompt and a token of an answer do fit."""
    if not mine or not other:
        return []
    (ids, mask), (other_ids, other_mask) = mine[0], other[0]
    prompt, answer = slice(int(mask.argmax())), slice(int(other_mask.argmax()), None)  # parted at the first trained id
    joined = np.concatenate([ids[prompt], other_ids[answer]]), np.concatenate([mask[prompt], other_mask[answer]])
    return [(joined[0][:most], joined[1][:most])]


def _predict(rows: Sequence[list[MaskedIds]], width: Width) -> TokenBatch:
    """Rows of sequences, each shifted by itself, so that the first token of a segment is nobody's target."""
    arrays = _blank(len(rows), width)
    for row, sequences in enumerate(rows):
        start = 0
        for segment, (ids, trained) in enumerate(sequences, start=1):
            span = slice(start, start + len(ids) - 1)
            arrays["tokens"][row, span] = ids[:-1]
            arrays["targets"][row, span] = ids[1:]
            arrays["mask"][row, span] = trained[1:]
            arrays["positions"][row, span] = np.arange(len(ids) - 1)
            arrays["segment_ids"][row, span] = segment
            start = span.stop
    return _finish(arrays, width)


def _score(index: Index, rows: Sequence[np.ndarray], width: Width) -> TokenBatch:
    """Rows of one whole sequence at most; the mask is True at its last token."""
    arrays = _blank(len(rows), width)
    for row, sequences in enumerate(rows):
        for sequence in sequences:
            ids, _ = index.sequence(int(sequence))
            arrays["tokens"][row, : len(ids)] = ids
            arrays["mask"][row, len(ids) - 1] = True
            arrays["positions"][row, : len(ids)] = np.arange(len(ids))
            arrays["segment_ids"][row, : len(ids)] = 1
    return _finish(arrays, width)


def _blank(rows: int, width: Width) -> dict[str, np.ndarray]:
    names = ("tokens", "targets", "positions", "segment_ids")
    arrays = {name: np.zeros((rows, width.tokens), np.int32) for name in names}
    return arrays | {"mask": np.zeros((rows, width.tokens), bool)}


def _finish(arrays: dict[str, np.ndarray], width: Width) -> TokenBatch:
    fields: dict[str, Any] = dict(arrays)
    if width.columns is not None:
        fields["columns"] = _columns(arrays["mask"], width.columns)
    return TokenBatch(**fields)


def _columns(mask: np.ndarray, count: int) -> np.ndarray:
    """Where each row of the mask is True, [B, count], padded with T."""
    columns = np.full((len(mask), count), mask.shape[1], np.int32)
    for row, row_mask in enumerate(mask):
        found = np.flatnonzero(row_mask)
        columns[row, : len(found)] = found
    return columns


def _one_a_row(index: Index, units: np.ndarray, most: int) -> list[np.ndarray]:
    """The answers of each unit, each in a row of its own, filled up to `most` rows with empty ones."""
    rows: list[np.ndarray] = []
    for unit in units:
        owned = index.sequences_of(int(unit))
        rows += [owned[i : i + 1] for i in range(most)]
    return rows


def _group(batch: TokenBatch, size: int) -> TokenBatch:
    """[B * size, ...] to [B, size, ...]."""
    arrays = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
    grouped: dict[str, Any] = {name: x.reshape(-1, size, x.shape[-1]) for name, x in arrays.items() if x is not None}
    return TokenBatch(**grouped)


def _ranks(index: Index, units: np.ndarray, most: int) -> Any:
    ranks = np.zeros((len(units), most), np.int32)
    for row, unit in enumerate(units):
        owned = index.sequences_of(int(unit))
        ranks[row, : len(owned)] = index.ranks[owned]
    return ranks


def _margins(index: Index, units: np.ndarray) -> Any:
    return np.where(units >= 0, index.margins[units], 0).astype(np.float32)


def _most_read(index: Index, layout: Layout) -> np.ndarray:
    """For each unit the most columns that count in a row, or of an answer where they share one, [n_units] int64."""
    trained = np.add.reduceat(index.mask, index.offsets[:-1], dtype=np.int64)
    return _of_units(index, np.ones_like(trained) if layout.scores else trained)


def _of_units(index: Index, numbers: np.ndarray) -> np.ndarray:
    """From numbers of sequences to those of units: the sum of what is packed in one row, the most of several rows."""
    if index.bins is not None:
        return np.array([numbers[packed].sum() for packed in index.bins])
    return np.maximum.reduceat(numbers, index.groups[:-1])


def _unit_length(index: Index, layout: Layout, unit: int) -> int:
    if layout.shared:
        return shared_length(_answers(index, unit, layout), layout.shift)
    sequences = index.sequences_of(unit)
    lengths = index.offsets[sequences + 1] - index.offsets[sequences] - layout.shift
    return int(lengths.sum() if index.bins is not None else lengths.max())


def _round_up(number: int) -> int:
    return -(-number // _MULTIPLE) * _MULTIPLE


def _array(array: np.ndarray) -> Any:
    """Batches hold jax arrays in their annotations and, on the host, numpy arrays of the same shapes."""
    return array
