"""Strict JSON, a row a line or an array of rows, with the place of every row and every mistake."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, BinaryIO

from jaxrlhf.data.rowlog import Row, RowError, RowLog, shown

MAX_LINE = 64 * 2**20  # bytes; a longer line is rather a file without line breaks

_NO_NUMBER = object()  # stands for NaN and Infinity until the field that holds it is known


def read_lines(stream: BinaryIO, name: str, log: RowLog) -> Iterator[tuple[str, Row]]:
    """Yields (`name:line`, row) of JSON Lines; lines may end in LF, CRLF or CR.

    Args:
        stream: the bytes, from the start of the file.
        name: name of the file in messages.
        log: counts the rows, and is told of the bad ones.

    Yields:
        Place and row of each line that holds an object.

    Raises:
        ValueError: if a line is longer than 64 MiB.
    """
    for number, offset, line in _lines(stream, name):
        if not line.strip():
            log.blank += 1
            continue
        log.read += 1
        where = f"{name}:{number}"
        try:
            yield where, _object(parse(_decode(line, offset)))
        except RowError as error:
            log.reject(where, error, line)


def read_array(stream: BinaryIO, name: str, log: RowLog) -> Iterator[tuple[str, Row]]:
    """Yields (`name:line`, row) of a JSON array of objects; the line is the one where the object begins.

    Raises:
        ValueError: at a syntax error; what follows it cannot be read.
    """
    text = _decode(stream.read(), 0, name)
    position = _skip_space(text, text.index("[") + 1)
    line, counted = 1, 0
    while text[position : position + 1] not in ("]", ""):
        line += text.count("\n", counted, position)
        counted = position
        where = f"{name}:{line}"
        try:
            value, position = _decoder.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where}: {_explain(error, text)}; the rest of the array cannot be read") from error
        log.read += 1
        try:
            yield where, _object(value)
        except RowError as error:
            log.reject(where, error, {"value": value})
        position = _skip_comma(text, position, where)
    if position >= len(text) or text[position + 1 :].strip():
        raise ValueError(f"{name}: expected one JSON array and nothing after its ']'")


def parse(text: str) -> Any:
    """Returns the value of a JSON text; refuses NaN, repeated keys and nesting beyond Python's stack.

    Raises:
        RowError: with the column of the mistake, or the key.
    """
    try:
        return _decoder.decode(text)
    except RowError:
        raise
    except (ValueError, RecursionError) as error:
        raise RowError("JSON_SYNTAX", _explain(error, text)) from error


def _strict_object(pairs: list[tuple[str, Any]]) -> Row:
    row = dict(pairs)
    if len(row) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise RowError("JSON_DUPKEY", f"key {shown(twice)} appears twice in one object; keep one")
    for key, value in pairs:
        if _holds_no_number(value):
            message = f"field {shown(key)} is NaN or Infinity, which JSON does not have; write a number or null"
            raise RowError("JSON_NAN", message)
    return row


def _holds_no_number(value: Any) -> bool:
    if isinstance(value, list):
        return any(_holds_no_number(item) for item in value)
    return value is _NO_NUMBER


_decoder = json.JSONDecoder(object_pairs_hook=_strict_object, parse_constant=lambda _: _NO_NUMBER)


def _object(value: Any) -> Row:
    if isinstance(value, dict):
        return value
    found = {list: "a list", str: "a string", type(None): "null", bool: "true or false"}.get(type(value), "a number")
    raise RowError("ROW_TYPE", f"found {found}, expected an object with the columns of a row")


def _explain(error: ValueError | RecursionError, text: str) -> str:
    if isinstance(error, RecursionError):
        return "nested too deeply to be read"
    if not isinstance(error, json.JSONDecodeError):
        return str(error)
    line = f"line {error.lineno}, " if error.lineno > 1 else ""
    cut = "; the text ends inside a row, was it cut off?" if error.pos >= len(text.rstrip()) else ""
    return f"not JSON at {line}column {error.colno}: {error.msg}{cut}"


def _decode(data: bytes, offset: int, name: str | None = None) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = f"byte 0x{data[error.start]:02x} at offset {offset + error.start} is not UTF-8"
        message = f"{byte}; convert the file with: iconv -f <encoding> -t UTF-8"
        if name is not None:
            line = 1 + data.count(b"\n", 0, error.start)
            raise ValueError(f"{name}:{line}: {message}") from error
        raise RowError("ENC_UTF8", message) from error


def _lines(stream: BinaryIO, name: str) -> Iterator[tuple[int, int, bytes]]:
    number, offset = 0, stream.tell()
    while chunk := stream.readline(MAX_LINE + 1):
        if len(chunk) > MAX_LINE:
            raise ValueError(f"{name}:{number + 1}: the line is longer than {MAX_LINE} bytes; expected one row a line")
        for line in chunk.splitlines(keepends=True):  # a file with CR alone is a single chunk
            number += 1
            yield number, offset, line.rstrip(b"\r\n")
            offset += len(line)


def _skip_space(text: str, position: int) -> int:
    while position < len(text) and text[position].isspace():
        position += 1
    return position


def _skip_comma(text: str, position: int, where: str) -> int:
    after = _skip_space(text, position)
    if text[after : after + 1] == "]":
        return after
    next_row = _skip_space(text, after + 1)
    if text[after : after + 1] == "," and text[next_row : next_row + 1] != "]":
        return next_row
    raise ValueError(f"{where}: expected ', {{' or ']' after this row of the array; the rest cannot be read")
