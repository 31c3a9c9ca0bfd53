"""From data sets to the index: rows are read, checked, encoded, filtered and packed, once."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from jaxrlhf.data import chat
from jaxrlhf.data.config import DataConfig, DatasetConfig
from jaxrlhf.data.encoder import Encoded, Encoder, Piece, encode, make_encoder
from jaxrlhf.data.fields import Text
from jaxrlhf.data.index import Index
from jaxrlhf.data.lengths import Dropped, fit, pack
from jaxrlhf.data.report import Report
from jaxrlhf.data.rowlog import Row, RowError, RowLog
from jaxrlhf.data.rows import AnyRow, PreferenceRow, PromptRow, RankedRow, SftRow, UnpairedRow, is_messages
from jaxrlhf.data.shapes import Kind
from jaxrlhf.data.sources import Conversion, Source, checked_rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ENCODE_AT_ONCE = 1024  # rows in one call of the tokenizer, which spreads them over threads


class _Draft(NamedTuple):
    """A row on its way into the index: not encoded yet."""

    source: int
    row: AnyRow
    answers: list[list[Piece]]
    special: bool


class _Example(NamedTuple):
    """A row on its way into the index: encoded, and short enough."""

    source: int
    row: AnyRow
    answers: list[Encoded]


def build_index(
    kind: Kind,
    sources: Sequence[Source],
    tokenizer: PreTrainedTokenizerBase,
    config: DataConfig,
    *,
    rejects: Path | None = None,
) -> Index:
    """Reads, checks, encodes and filters data sets.

    Args:
        kind: what the method learns from: "sft", "preference", "unpaired", "ranked" or "prompt".
        sources: data sets, each by its path or as rows in memory.
        tokenizer: a transformers tokenizer.
        config: lengths, chat template, layout, and what happens to bad rows.
        rejects: where bad rows are written, if they may be skipped.

    Returns:
        The index.

    Raises:
        ValueError: if rows are bad, with up to 20 of them, if an option has no effect on `kind`, if nothing is left, or
            single answers are all good or all bad.
    """
    _check_options(kind, config)
    encoder = make_encoder(tokenizer, config)
    log = RowLog(bad_rows=config.bad_rows, rejects=rejects)
    conversion = Conversion()
    drafts = list(_drafts(kind, sources, encoder, config, log, conversion))
    log.finish()
    examples, lost = _encode(drafts, encoder, config)
    report = _report(log, conversion, drafts, examples, lost)
    if not examples:
        advice = "; raise data.max_length" if report.dropped_long or report.dropped_long_prompt else ""
        raise ValueError("\n".join([*report.lines(), f"no examples are left{advice}"]))
    if kind == "unpaired":
        _check_labels(examples, report)
    weights = [source.weight if isinstance(source, DatasetConfig) else 1.0 for source in sources]
    return _assemble(kind, examples, weights, report, encoder, config)


def _check_options(kind: Kind, config: DataConfig) -> None:
    if kind != "sft" and config.packing:
        raise ValueError(f"data.packing=true works for SFT only, not for {kind!r}; remove it")
    if kind != "sft" and not config.completion_only:
        raise ValueError(f"data.completion_only=false works for SFT only, not for {kind!r}; remove it")
    if kind not in ("preference", "ranked") and config.share_prompts is not None:
        shared = str(config.share_prompts).lower()
        raise ValueError(f"data.share_prompts={shared} works for pairs and rankings only, not for {kind!r}; remove it")
    if kind != "prompt" and config.max_prompt_length is not None:
        raise ValueError(f"data.max_prompt_length works for prompts only, not for {kind!r}; use data.max_length")
    if kind == "prompt" and config.truncation != DataConfig().truncation:
        raise ValueError(
            f"data.truncation={config.truncation} has no effect on prompts, which are dropped where they are too long; "
            "remove it"
        )
    if kind == "prompt" and not config.add_eos:
        raise ValueError("data.add_eos=false has no effect on prompts, which do not end; remove it")


def _check_labels(examples: Sequence[_Example], report: Report) -> None:
    labels = {_desirable(example.row) for example in examples}
    if len(labels) == 1:
        only, other = ("true", "false") if labels == {True} else ("false", "true")
        problem = f"all examples have the label {only}; add some of {other}, since both kinds are needed"
        raise ValueError("\n".join([problem, *report.lines()]))


def _drafts(
    kind: Kind,
    sources: Sequence[Source],
    encoder: Encoder,
    config: DataConfig,
    log: RowLog,
    conversion: Conversion,
) -> Iterator[_Draft]:
    for number, source in enumerate(sources):
        for row in checked_rows(kind, source, number + 1, config, log, conversion):
            if is_messages(row):
                chat.check_template(encoder, row.where)
            special = any(chat.holds_special_token(encoder, text) for text in _texts(row))
            try:
                yield _Draft(number, row, _split(encoder, row), special)
            except RowError as error:
                log.reject(row.where, error, dataclasses.asdict(row))


def _split(encoder: Encoder, row: AnyRow) -> list[list[Piece]]:
    if isinstance(row, PromptRow):
        return [chat.split_prompt(encoder, row.prompt)]
    answers = zip(_answers(row), _terminated(row), strict=True)
    return [chat.split_answer(encoder, row.prompt, answer, terminated=ended) for answer, ended in answers]


def _answers(row: SftRow | PreferenceRow | UnpairedRow | RankedRow) -> list[Text]:
    if isinstance(row, SftRow | UnpairedRow):
        return [row.completion]
    return [row.chosen, row.rejected] if isinstance(row, PreferenceRow) else row.completions


def _terminated(row: SftRow | PreferenceRow | UnpairedRow | RankedRow) -> list[bool]:
    if isinstance(row, SftRow | UnpairedRow):
        return [row.terminated]
    return [True, True] if isinstance(row, PreferenceRow) else row.terminated


def _texts(row: AnyRow) -> list[Text]:
    return [row.prompt] if isinstance(row, PromptRow) else [row.prompt, *_answers(row)]


def _encode(
    drafts: Sequence[_Draft], encoder: Encoder, config: DataConfig
) -> tuple[list[_Example], collections.Counter[str]]:
    """Encodes drafts, many at a time, and keeps what fits; also counts what was lost, and what was cut."""
    examples: list[_Example] = []
    lost: collections.Counter[str] = collections.Counter()
    for start in range(0, len(drafts), ENCODE_AT_ONCE):
        some = drafts[start : start + ENCODE_AT_ONCE]
        encoded = iter(encode(encoder, [pieces for draft in some for pieces in draft.answers]))
        for draft in some:
            whole = [next(encoded) for _ in draft.answers]
            kept = _keep(draft.row, whole, encoder, config)
            if isinstance(kept, str):
                lost[kept] += 1
                continue
            lost["truncated"] += sum(len(old.ids) > len(new.ids) for old, new in zip(whole, kept, strict=True))
            examples.append(_Example(draft.source, draft.row, kept))
    return examples, lost


def _keep(row: AnyRow, answers: list[Encoded], encoder: Encoder, config: DataConfig) -> list[Encoded] | Dropped:
    if not isinstance(row, PromptRow):
        return fit(answers, config, encoder.bos)
    longest = config.max_length - 1 if config.max_prompt_length is None else config.max_prompt_length
    return "long_prompt" if len(answers[0].ids) > longest else answers


def _report(
    log: RowLog,
    conversion: Conversion,
    drafts: Sequence[_Draft],
    examples: Sequence[_Example],
    lost: Mapping[str, int],
) -> Report:
    sequences = [answer for example in examples for answer in example.answers]
    return Report(
        read=log.read,
        added=conversion.added,
        kept=len(examples),
        blank=log.blank,
        rejected=log.rejected,
        ties_dropped=conversion.unused["tie"],
        blank_answers_dropped=conversion.unused["blank"],
        dropped_long_prompt=lost["long_prompt"],
        dropped_long=lost["long"],
        dropped_untrained=lost["untrained"],
        dropped_identical=lost["identical"],
        truncated=lost["truncated"],
        special_text=sum(draft.special for draft in drafts),
        sequences=len(sequences),
        tokens=sum(len(sequence.ids) for sequence in sequences),
        trained_tokens=sum(int(sequence.mask.sum()) for sequence in sequences),
        longest=max((len(sequence.ids) for sequence in sequences), default=0),
        extra_columns=tuple(sorted(conversion.extras)),
        notes=tuple(log.notes),
    )


def _assemble(
    kind: Kind,
    examples: Sequence[_Example],
    weights: Sequence[float],
    report: Report,
    encoder: Encoder,
    config: DataConfig,
) -> Index:
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
