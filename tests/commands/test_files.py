"""Files that commands write: new, and whole or not there."""

import json

import pytest

from jaxrlhf.commands.files import write_result, write_rows


def test_rows_and_results_are_read_back(tmp_path):
    write_rows(tmp_path / "new" / "rows.jsonl", iter([{"a": "é"}, {"a": 2}]))
    write_result(tmp_path / "new" / "result.json", {"n": [1, None]})
    assert (tmp_path / "new" / "rows.jsonl").read_text(encoding="utf-8") == '{"a": "é"}\n{"a": 2}\n'
    assert json.loads((tmp_path / "new" / "result.json").read_text()) == {"n": [1, None]}
    assert len(list((tmp_path / "new").iterdir())) == 2


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_rows_that_fail_on_the_way_leave_nothing(tmp_path, error):
    def rows():
        yield {"a": 1}
        raise error

    with pytest.raises(error):
        write_rows(tmp_path / "rows.jsonl", rows())
    assert list(tmp_path.iterdir()) == []


def test_a_result_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("no space left")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="no space left"):
        write_result(tmp_path / "result.json", {"n": 1})
    assert list(tmp_path.iterdir()) == []
