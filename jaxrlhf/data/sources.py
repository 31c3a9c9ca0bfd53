"""From data sets to checked rows: read, give standard columns, check; all that is wrong is reported at once."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from jaxrlhf.data.config import DataConfig, DatasetConfig, Format
from jaxrlhf.data.files import read_rows
from jaxrlhf.data.rowlog import Row, RowError, RowLog
from jaxrlhf.data.rows import AnyRow, check_row, is_messages
from jaxrlhf.data.shapes import SHAPES, Kind, detect, rename

Source = DatasetConfig | Iterable[Mapping[str, Any]]
"""A data set by its path, or rows in memory."""


@dataclasses.dataclass(kw_only=True)
class Conversion:
    """How the rows of one data set turned into checked rows.

    Attributes:
        unused: how many rows of labelled pairs said nothing: "tie" or "blank".
        added: rows gained because one row held several examples.
        extras: names of columns that the layout does not use.
    """

    unused: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    added: int = 0
    extras: set[str] = dataclasses.field(default_factory=set)


def checked_rows(
    kind: Kind, source: Source, number: int, config: DataConfig, log: RowLog, conversion: Conversion
) -> Iterator[AnyRow]:
    """Yields the rows of a data set with standard columns, checked.

    Args:
        kind: what the method learns from.
        source: a data set or rows in memory.
        number: the number of the data set, from 1, which names rows in memory.
        config: gives the default layout and columns.
        log: counts rows, and is told of the bad ones.
        conversion: counts what the layout adds and leaves out.

    Yields:
        Checked rows, in order.

    Raises:
        ValueError: if the data set cannot be read, or its layout is unknown or does not suit `kind`.
    """
    layout = source.format if isinstance(source, DatasetConfig) and source.format else config.format
    columns = (source.columns if isinstance(source, DatasetConfig) else None) or config.columns or {}
    first: AnyRow | None = None
    for where, raw in _raw_rows(source, number, log):
        try:
            row = rename(raw, columns)
            layout = layout or _detect(kind, where, row, log)
            for checked in _convert(kind, where, row, layout, conversion):
                first = first or checked
                _check_form(first, checked)
                conversion.extras |= set(checked.extras)
                yield checked
        except RowError as error:
            log.reject(where, error, raw)


def _raw_rows(source: Source, number: int, log: RowLog) -> Iterator[tuple[str, Row]]:
    if isinstance(source, DatasetConfig):
        yield from read_rows(source, log)
        return
    name = "row" if number == 1 else f"data set {number}, row"
    for i, row in enumerate(source, start=1):
        if not isinstance(row, Mapping):
            raise TypeError(f"{name} {i} is {type(row).__name__}; expected each data set in memory as a list of dicts")
        log.read += 1
        yield f"{name} {i}", dict(row)


def _detect(kind: Kind, where: str, row: Row, log: RowLog) -> Format:
    try:
        layout = detect(kind, row)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    log.note(f"{where.rpartition(':')[0] or 'rows in memory'}: read as {layout} ({SHAPES[layout].columns})")
    return layout


def _convert(kind: Kind, where: str, row: Row, layout: Format, conversion: Conversion) -> list[AnyRow]:
    shape = SHAPES[layout]
    if kind not in shape.kinds:
        raise ValueError(f"{where}: format={layout} feeds {' and '.join(shape.kinds)}, but {kind!r} is needed")
    converted = shape.convert({name: value for name, value in row.items() if name not in shape.hides})
    if isinstance(converted, str):
        conversion.unused[converted] += 1
        return []
    checked = [check_row(kind, where, item) for item in converted]
    conversion.added += len(checked) - 1
    return checked


def _check_form(first: AnyRow, row: AnyRow) -> None:
    if is_messages(first) != is_messages(row):
        forms = ["messages" if is_messages(item) else "text" for item in (row, first)]
        message = f"the row is {forms[0]}, but {first.where} is {forms[1]}; a data set holds one or the other"
        raise RowError("FORMAT_MIX", message)


def comparison_kind(source: Source, config: DataConfig) -> Kind:
    """Whether the comparisons of a data set are rankings ("ranked") or pairs ("preference"), by its first row.

    Args:
        source: a data set or rows in memory.
        config: gives the default layout and columns.

    Raises:
        ValueError: if the data set cannot be read or has no rows.
    """
    layout = source.format if isinstance(source, DatasetConfig) and source.format else config.format
    if layout is None:
        columns = (source.columns if isinstance(source, DatasetConfig) else None) or config.columns or {}
        raw = next((row for _, row in _raw_rows(source, 1, RowLog(bad_rows="skip"))), None)
        if raw is None:
            raise ValueError("the data set of comparisons has no rows")
        first = rename(raw, columns)
        return (
            "ranked"
            if any("ranked" in shape.kinds and shape.fits(first) for shape in SHAPES.values())
            else "preference"
        )
    return "ranked" if "ranked" in SHAPES[layout].kinds else "preference"
