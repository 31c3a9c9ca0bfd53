"""From a path or a hub id to raw rows, each with the place where it stands."""

from __future__ import annotations

import difflib
import gzip
import logging
import re
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, cast

from jaxrlhf.data import jsonrows
from jaxrlhf.data.config import DatasetConfig
from jaxrlhf.data.rowlog import Row, RowLog

Rows = Iterator[tuple[str, Row]]

SUFFIXES = (".jsonl", ".json", ".parquet", ".txt")
SPLITS = ("train", "test", "validation", "valid", "dev", "eval")

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+)?")
_BOM = b"\xef\xbb\xbf"


def read_rows(dataset: DatasetConfig, log: RowLog) -> Rows:
    """Yields (place, row) of every row of a data set that can be parsed.

    Places are `file:line`, `file:row` for parquet and `name[split]:row` for what the `datasets` library reads; all
    count from 1.

    Args:
        dataset: path and split.
        log: counts rows and blank lines, and is told of the bad rows.

    Yields:
        Place and row, in the order of the files.

    Raises:
        ValueError: if the path does not exist, a file is empty or not what its name says, or a split is missing.
    """
    path = Path(dataset.path).expanduser()
    if path.is_dir():
        return _read_folder(path, dataset.split, log)
    if path.is_file():
        return read_file(path, log)
    if _HUB_ID.fullmatch(dataset.path) and _suffix(path) not in SUFFIXES and not path.parent.is_dir():
        return _read_hub(dataset.path, dataset.split, log)
    raise ValueError(_missing(path))


def read_file(path: Path, log: RowLog) -> Rows:
    """Yields (`file:line`, row) of a .jsonl, .json, .txt or .parquet file, the first three also with .gz.

    Raises:
        ValueError: if the file is empty or not what its name says.
    """
    suffix = _suffix(path)
    if suffix not in SUFFIXES:
        raise ValueError(f"{path}: expected a file ending in {', '.join(SUFFIXES)} (or with .gz)")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty (0 bytes)")
    before = (log.read, log.blank)
    if suffix == ".parquet":
        yield from _read_parquet(path, log)
    else:
        yield from _read_text_file(path, suffix, log)
    if log.read == before[0]:
        raise ValueError(f"{path} has no rows ({log.blank - before[1]} blank lines)")


def _read_text_file(path: Path, suffix: str, log: RowLog) -> Rows:
    with _open(path) as stream:
        try:
            head = stream.read(512)
            _check_head(path, head, log)
            stream.seek(len(_BOM) if head.startswith(_BOM) else 0)
            if suffix == ".txt":
                yield from _read_stories(stream, str(path), log)
            else:
                yield from _read_json(stream, head.removeprefix(_BOM), path, suffix, log)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise ValueError(f"{path} is not a whole gzip file ({error}); copy it again") from error


def _read_json(stream: BinaryIO, head: bytes, path: Path, suffix: str, log: RowLog) -> Rows:
    is_array = head.lstrip().startswith(b"[")
    if is_array and suffix == ".jsonl":
        log.note(f"{path} holds a JSON array, not JSON lines; read as an array")
    if not is_array and suffix == ".json":
        log.note(f"{path} holds no JSON array; read as JSON lines")
    read = jsonrows.read_array if is_array else jsonrows.read_lines
    yield from read(stream, str(path), log)


def _read_stories(stream: BinaryIO, name: str, log: RowLog) -> Rows:
    """Texts separated by blank lines, as rows with the column `text`."""
    first, lines = 1, []
    for number, line in enumerate([*_decoded_lines(stream, name), ""], start=1):
        if line.strip():
            first = first if lines else number
            lines.append(line)
        elif lines:
            log.read += 1
            yield f"{name}:{first}", {"text": "\n".join(lines)}
            lines = []


def _decoded_lines(stream: BinaryIO, name: str) -> list[str]:
    data = stream.read()
    try:
        return re.split(r"\r\n|\n|\r", data.decode("utf-8"))
    except UnicodeDecodeError as error:
        line = 1 + data.count(b"\n", 0, error.start)
        raise ValueError(f"{name}:{line}: byte 0x{data[error.start]:02x} is not UTF-8; convert the file") from error


def _read_parquet(path: Path, log: RowLog) -> Rows:
    import pyarrow
    import pyarrow.parquet

    try:
        number = 0
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches(batch_size=1024):
            for row in batch.to_pylist():
                number += 1
                log.read += 1
                yield f"{path}:{number}", row
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{path} is not a whole parquet file: {error}") from error


def _read_folder(folder: Path, split: str, log: RowLog) -> Rows:
    if (folder / "state.json").exists() or (folder / "dataset_dict.json").exists():
        yield from _read_saved(folder, split, log)
        return
    for path in _split_files(folder, split):
        yield from read_file(path, log)


def _split_files(folder: Path, split: str) -> list[Path]:
    """The files of a folder that belong to a split, by their names; without any such names, all of them are `train`."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and _suffix(path) in SUFFIXES)
    if not files:
        raise ValueError(f"{folder} holds no {', '.join(SUFFIXES)} files")
    names = {path: set(re.split(r"[^a-z]+", str(path.relative_to(folder)).lower())) for path in files}
    present = {name for name in SPLITS if any(name in words for words in names.values())}
    if not present and split == "train":
        return files
    chosen = [path for path in files if split in names[path]]
    if not chosen:
        raise ValueError(f"{folder} has no split {split!r}; its files name {', '.join(sorted(present)) or 'none'}")
    return chosen


def _read_saved(folder: Path, split: str, log: RowLog) -> Rows:
    import datasets

    saved = datasets.load_from_disk(str(folder))
    if isinstance(saved, datasets.DatasetDict):
        if split not in saved:
            raise ValueError(f"{folder} has no split {split!r}; it has {', '.join(map(str, saved))}")
        saved = saved[split]
    yield from _number(cast(Iterable[Row], saved), f"{folder}[{split}]", log)


def _read_hub(path: str, split: str, log: RowLog) -> Rows:
    import datasets
    from datasets.exceptions import DatasetsError

    name, _, configuration = path.partition(":")
    logging.getLogger("huggingface_hub.utils._http").setLevel(logging.ERROR)  # a line for each of many attempts
    try:
        loaded = datasets.load_dataset(name, configuration or None, split=split)
    except (DatasetsError, ValueError, ConnectionError) as error:
        fetch = f"; where there is a network, run: hf download --repo-type dataset {name} --local-dir FOLDER"
        advice = f"{fetch}, and give FOLDER here" if isinstance(error, ConnectionError) else ""
        raise ValueError(
            f"{path} is no file or folder here, and as a hub id (split {split!r}): {error}{advice}"
        ) from error
    yield from _number(cast(Iterable[Row], loaded), f"{path}[{split}]", log)


def _number(rows: Iterable[Row], name: str, log: RowLog) -> Rows:
    for number, row in enumerate(rows, start=1):
        log.read += 1
        yield f"{name}:{number}", dict(row)


def _check_head(path: Path, head: bytes, log: RowLog) -> None:
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ValueError(f"{path} is UTF-16; convert it with: iconv -f UTF-16 -t UTF-8 {path.name}")
    if head.startswith(b"\x1f\x8b"):
        raise ValueError(f"{path} is compressed with gzip; rename it to {path.name}.gz")
    if head.startswith(b"version https://git-lfs"):
        raise ValueError(f"{path} is a Git-LFS pointer and not the data; fetch it with: git lfs pull")
    if head.lstrip()[:15].lower().startswith((b"<!doctype html", b"<html")):
        raise ValueError(f"{path} is an HTML page, probably the error page of a download; download it again")
    if head.startswith(_BOM):
        log.note(f"{path} begins with a byte-order mark; ignored")


def _open(path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb"))


def _suffix(path: Path) -> str:
    return Path(path.stem).suffix if path.suffix == ".gz" else path.suffix


def _missing(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f"{path} does not exist, nor does the folder {folder}"
    near = difflib.get_close_matches(path.name, [item.name for item in folder.iterdir()], n=3)
    return f"{path} does not exist" + (f"; did you mean {', '.join(near)}?" if near else f" in {folder}")
