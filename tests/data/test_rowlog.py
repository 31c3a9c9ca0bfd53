import base64
import json

import pytest

from jaxrlhf.data.rowlog import RowError, RowLog, shown


def _log(bad, read, **fields):
    log = RowLog(read=read, **fields)
    for i in range(bad):
        log.reject(f"a.jsonl:{i + 1}", RowError("CODE", f"problem {i + 1}"), {"n": i})
    return log


def test_bad_rows_are_reported_together_and_counted():
    with pytest.raises(
        ValueError, match=r"(?s)a.jsonl:1: problem 1.*a.jsonl:20: problem 20\n... and 5 more\n25 bad rows"
    ):
        _log(25, 100).finish()


def test_skip_passes_at_five_percent_and_fails_above():
    _log(5, 100, bad_rows="skip").finish()
    with pytest.raises(ValueError, match="6 bad rows of 100 are more than the 5%"):
        _log(6, 100, bad_rows="skip").finish()


def test_rejects_are_written_verbatim(tmp_path):
    log = RowLog(bad_rows="skip", rejects=tmp_path / "rejects.jsonl", read=100)
    log.reject("a:1", RowError("JSON_SYNTAX", "not JSON"), b'{"text": ')
    log.reject("a:2", RowError("ENC_UTF8", "not UTF-8"), b"\xff\x00")
    log.reject("a:3", RowError("FIELD_MISSING", "no prompt"), {"promt": "x"})
    log.finish()
    first, second, third = map(json.loads, (tmp_path / "rejects.jsonl").read_text().splitlines())
    assert first == {"where": "a:1", "code": "JSON_SYNTAX", "problem": "not JSON", "row": '{"text": '}
    assert base64.b64decode(second["row_base64"]) == b"\xff\x00"
    assert third["row"] == {"promt": "x"}


def test_values_are_shown_escaped_and_short():
    assert shown("a\nb") == r"'a\nb'"
    assert len(shown("x" * 500)) == 80
