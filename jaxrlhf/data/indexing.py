"""From data sets to the index: rows are read, checked, encoded, filtered and packed, once."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from jaxrlhf.data import chat
from jaxrlhf.data.assembly import Example, assemble
from jaxrlhf.data.config import DataConfig, DatasetConfig
from jaxrlhf.data.encoder import Encoded, Encoder, Piece, encode, make_encoder
from jaxrlhf.data.fields import Text
from jaxrlhf.data.index import Index
from jaxrlhf.data.lengths import Dropped, fit
from jaxrlhf.data.report import Report
from jaxrlhf.data.rowlog import RowError, RowLog
from jaxrlhf.data.rows import AnyRow, PreferenceRow, PromptRow, RankedRow, SftRow, UnpairedRow, is_messages
from jaxrlhf.data.shapes import Kind
from jaxrlhf.data.sources import Conversion, Source, checked_rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ENCODE_AT_ONCE = 1024  # rows in one call of the tokenizer, which spreads them over threads

_READERS: dict[Kind, str] = {
    "sft": "SFT and perplexity",
    "preference": "DPO and reward models",
    "unpaired": "KTO",
    "ranked": "reward models",
    "prompt": "methods that sample answers",
}
"""What reads each kind, for messages."""


class _Draft(NamedTuple):
    """A row on its way into the index: not encoded yet."""

    source: int
    row: AnyRow
    answers: list[list[Piece]]
    special: bool


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
    weights = [source.weight if isinstance(source, DatasetConfig) else 1.0 for source in sources]
    index = assemble(kind, examples, weights, report, encoder, config)
    if kind == "unpaired":
        _check_labels(index)
    return index


def _check_options(kind: Kind, config: DataConfig) -> None:
    reader = _READERS[kind]
    if kind != "sft" and config.packing:
        raise ValueError(f"data.packing=true works for SFT only, not for {reader}; remove it")
    if kind != "sft" and not config.completion_only:
        raise ValueError(f"data.completion_only=false works for SFT only, not for {reader}; remove it")
    if kind not in ("preference", "ranked") and config.share_prompts is not None:
        shared = str(config.share_prompts).lower()
        raise ValueError(
            f"data.share_prompts={shared} works for pairs and rankings only, not for {reader}; remove it (GRPO has "
            "grpo.share_prompts)"
        )
    if kind != "prompt" and config.max_prompt_length is not None:
        raise ValueError(f"data.max_prompt_length works for prompts only, not for {reader}; use data.max_length")
    if kind == "prompt" and config.truncation != DataConfig().truncation:
        raise ValueError(
            f"data.truncation={config.truncation} has no effect on prompts, which are dropped where they are too long; "
            "remove it"
        )
    if kind == "prompt" and not config.add_eos:
        raise ValueError("data.add_eos=false has no effect on prompts, which do not end; remove it")


def _check_labels(index: Index) -> None:
    if index.desirable.all() or not index.desirable.any():
        only, other = ("true", "false") if index.desirable.all() else ("false", "true")
        problem = f"all examples have the label {only}; add some of {other}, since both kinds are needed"
        raise ValueError("\n".join([problem, *index.report.lines()]))


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
) -> tuple[list[Example], collections.Counter[str]]:
    """Encodes drafts, many at a time, and keeps what fits; also counts what was lost, and what was cut."""
    examples: list[Example] = []
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
            examples.append(Example(draft.source, draft.row, kept))
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
    examples: Sequence[Example],
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
