import io

import pytest

from jaxrlhf.data import jsonrows
from jaxrlhf.data.rowlog import RowLog


def _lines(data: bytes):
    log = RowLog()
    return list(jsonrows.read_lines(io.BytesIO(data), "a.jsonl", log)), log


def _array(data: bytes):
    log = RowLog()
    return list(jsonrows.read_array(io.BytesIO(data), "a.json", log)), log


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_line_numbers_are_right_for_every_line_ending(end):
    rows, log = _lines(b'{"n": 1}' + end + end + b'{"n": 2}')
    assert rows == [("a.jsonl:1", {"n": 1}), ("a.jsonl:3", {"n": 2})]
    assert (log.read, log.blank) == (2, 1)


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        (b'{"text": "abc', "JSON_SYNTAX", "column 10"),
        (b'{"text": "a",}', "JSON_SYNTAX", "column 1"),
        (b"{'text': 1}", "JSON_SYNTAX", "column 2"),
        (b'{"score": NaN}', "JSON_NAN", "'score'"),
        (b'{"a": {"score": [1, -Infinity]}}', "JSON_NAN", "'score'"),
        (b'{"a": 1, "a": 2}', "JSON_DUPKEY", "'a' appears twice"),
        (b"[" * 100_000, "JSON_SYNTAX", "nested too deeply"),
        (b"[1]", "ROW_TYPE", "found a list"),
        (b'"x"', "ROW_TYPE", "found a string"),
        (b"3", "ROW_TYPE", "found a number"),
        (b"null", "ROW_TYPE", "found null"),
        (b'{"text": "\xff"}', "ENC_UTF8", "byte 0xff at offset 19"),
    ],
)
def test_bad_lines_are_named_and_the_others_read(line, code, message, tmp_path):
    log = RowLog(bad_rows="skip", rejects=tmp_path / "rejects.jsonl")
    data = b'{"n": 1}\n' + line + b'\n{"n": 3}\n'
    rows = list(jsonrows.read_lines(io.BytesIO(data), "a.jsonl", log))
    assert [where for where, _ in rows] == ["a.jsonl:1", "a.jsonl:3"]
    assert (log.read, log.rejected) == (3, 1)
    assert log.problems[0].startswith("a.jsonl:2: ") and message in log.problems[0]
    log.read = 100
    log.finish()
    assert f'"code": "{code}"' in (tmp_path / "rejects.jsonl").read_text()


def test_a_cut_off_last_line_is_called_that():
    _, log = _lines(b'{"n": 1}\n{"text": ')
    assert "was it cut off?" in log.problems[0]


def test_array_rows_have_the_line_where_they_begin():
    rows, log = _array(b'[\n  {"n": 1},\n\n  {\n"n": 2}, 5\n]\n')
    assert rows == [("a.json:2", {"n": 1}), ("a.json:4", {"n": 2})]
    assert log.problems == ["a.json:5: found a number, expected an object with the columns of a row"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'[{"n": 1},\n {"n": }]', "a.json:2: not JSON at line 2, column 8"),
        (b'[{"n": 1}\n {"n": 2}]', "a.json:1: expected"),
        (b'[{"n": 1},]', "a.json:1: expected"),
        (b'[{"n": 1}', "a.json:1: expected"),
        (b'[{"n": 1}] {"n": 2}', "nothing after its ']'"),
        (b'[{"n": 1},\n "\xff"]', "a.json:2: byte 0xff"),
    ],
)
def test_a_broken_array_stops_with_its_line(data, message):
    with pytest.raises(ValueError, match=message.replace("'", ".").replace("]", r"\]")):
        _array(data)


def test_a_line_without_end_is_refused(monkeypatch):
    monkeypatch.setattr(jsonrows, "MAX_LINE", 10)
    with pytest.raises(ValueError, match="a.jsonl:2: the line is longer than 10 bytes"):
        _lines(b'{"n": 1}\n{"text": "too long"}')
