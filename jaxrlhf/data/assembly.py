"""From encoded examples to the arrays of the index, the bins of packed rows, and the digest of it all."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxrlhf.data import chat
from jaxrlhf.data.config import DataConfig
from jaxrlhf.data.encoder import Encoded, Encoder
from jaxrlhf.data.index import Index
from jaxrlhf.data.lengths import pack
from jaxrlhf.data.report import Report
from jaxrlhf.data.rowlog import Row
from jaxrlhf.data.rows import AnyRow, PreferenceRow, PromptRow, RankedRow, UnpairedRow
from jaxrlhf.data.shapes import Kind


class Example(NamedTuple):
    """A row on its way into the index: encoded, and short enough.

    Attributes:
        source: number of its data set, from 0.
        row: what was read.
        answers: a sequence for each answer, or that of the text or the prompt alone.
    """

    source: int
    row: AnyRow
    answers: list[Encoded]


def assemble(
    kind: Kind,
    examples: Sequence[Example],
    weights: Sequence[float],
    report: Report,
    encoder: Encoder,
    config: DataConfig,
) -> Index:
    """Puts examples one after the other, and with packing plans the bins.

    Args:
        kind: what the examples are for.
        examples: one or more.
        weights: how often a row of each data set is seen, relative to the others.
        report: counts of what was read and left out; the bins are added.
        encoder: renders the prompts that the index keeps as text.
        config: reads `packing` and `max_length`; all of it goes into the digest.

    Returns:
        The index.
    """
    sequences = [answer for example in examples for answer in example.answers]
    lengths = np.array([len(sequence.ids) for sequence in sequences], np.int64)
    source = np.array([example.source for example in examples], np.int32)
    bins = None
    if config.packing:
        bins, source = _pack_by_source(lengths - 1, source, config.max_length)
        report = dataclasses.replace(report, bins=len(bins))
    index = Index(
        kind=kind,
        ids=np.concatenate([sequence.ids for sequence in sequences]),
        mask=np.concatenate([sequence.mask for sequence in sequences]),
        offsets=_starts(lengths),
        groups=_starts([len(example.answers) for example in examples]),
        ranks=np.array([rank for example in examples for rank in _ranks(example.row)], np.int32),
        margins=np.array([_margin(example.row) for example in examples], np.float32),
        desirable=np.array([_desirable(example.row) for example in examples], bool),
        extras=tuple(_extras(encoder, example.row) for example in examples if isinstance(example.row, PromptRow)),
        bins=bins,
        weights=np.array(weights, np.float32),
        source=source,
        report=report,
        digest="",
    )
    return dataclasses.replace(index, digest=_digest(index, encoder, config))


def _starts(lengths: Sequence[int] | np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def _pack_by_source(
    lengths: np.ndarray, source: np.ndarray, capacity: int
) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
    """Packs each data set by itself, so that a bin has one source and one weight."""
    bins: list[np.ndarray] = []
    origin: list[int] = []
    for number in np.unique(source):
        members = np.flatnonzero(source == number)
        packed = [members[items] for items in pack(lengths[members], capacity)]
        bins += packed
        origin += [int(number)] * len(packed)
    return tuple(bins), np.array(origin, np.int32)


def _ranks(row: AnyRow) -> list[int]:
    if isinstance(row, RankedRow):
        return row.ranks
    return [1, 2] if isinstance(row, PreferenceRow) else [1]


def _margin(row: AnyRow) -> float:
    return row.margin if isinstance(row, PreferenceRow) else 0.0


def _desirable(row: AnyRow) -> bool:
    return row.desirable if isinstance(row, UnpairedRow) else True


def _extras(encoder: Encoder, row: PromptRow) -> Row:
    conversation = {"messages": row.prompt} if isinstance(row.prompt, list) else {}
    return row.extras | conversation | {"prompt": chat.prompt_text(encoder, row.prompt)}


def _digest(index: Index, encoder: Encoder, config: DataConfig) -> str:
    digest = hashlib.sha256()
    arrays = (index.ids, index.mask, index.offsets, index.groups, index.ranks, index.margins, index.desirable)
    for array in (*arrays, index.source):
        digest.update(array.tobytes())
    for packed in index.bins or ():
        digest.update(packed.tobytes() + b"|")
    vocabulary = sorted(encoder.tokenizer.get_vocab().items())
    settings = [index.kind, dataclasses.asdict(config), index.weights.tolist(), encoder.template, vocabulary]
    for part in (*index.extras, *settings):
        digest.update(json.dumps(part, sort_keys=True, default=str).encode())
    return digest.hexdigest()
