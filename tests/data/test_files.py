import gzip
import json

import pytest

from jaxrlhf.data.config import DatasetConfig
from jaxrlhf.data.files import read_rows
from jaxrlhf.data.rowlog import RowLog

ROWS = [{"text": "one"}, {"text": "two"}]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


def _read(path, log=None, **fields):
    return list(read_rows(DatasetConfig(path=str(path), **fields), log or RowLog()))


@pytest.mark.parametrize(
    ("name", "text", "lines"),
    [
        ("a.jsonl", LINES, [1, 2]),
        ("a.json", json.dumps(ROWS), [1, 1]),
        ("a.json", LINES, [1, 2]),
        ("a.jsonl", json.dumps(ROWS, indent=1), [2, 5]),
        ("a.txt", "one\n\n\ntwo\n", [1, 4]),
    ],
)
@pytest.mark.parametrize("zipped", [False, True])
def test_every_kind_of_file_is_read_with_its_lines(tmp_path, name, text, lines, zipped):
    path = tmp_path / (name + ".gz" if zipped else name)
    path.write_bytes(gzip.compress(text.encode(), mtime=0) if zipped else text.encode())
    assert _read(path) == [(f"{path}:{line}", row) for line, row in zip(lines, ROWS, strict=True)]


def test_a_file_that_is_not_what_its_name_says_is_noted(tmp_path):
    log = RowLog()
    (tmp_path / "a.json").write_text(LINES)
    _read(tmp_path / "a.json", log)
    assert log.notes == [f"{tmp_path / 'a.json'} holds no JSON array; read as JSON lines"]


def test_stories_keep_their_line_breaks(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\n\nOnce\r\nupon\r\n\r\na time")
    texts = [row["text"] for _, row in _read(tmp_path / "a.txt")]
    assert texts == ["Once\nupon", "a time"]


def test_parquet_rows_are_numbered(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    assert _read(tmp_path / "a.parquet")[1] == (f"{tmp_path / 'a.parquet'}:2", ROWS[1])


def test_a_byte_order_mark_is_ignored_and_noted(tmp_path):
    log = RowLog()
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + LINES.encode())
    assert [row for _, row in _read(tmp_path / "a.jsonl", log)] == ROWS
    assert "byte-order mark" in log.notes[0]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", r"is empty \(0 bytes\)"),
        (b"\n \n\n", r"has no rows \(3 blank lines\)"),
        (gzip.compress(b"{}", mtime=0), "compressed with gzip; rename it to a.jsonl.gz"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"<!DOCTYPE html><html>", "HTML page"),
        (LINES.encode("utf-16"), "UTF-16; convert it with: iconv"),
    ],
)
def test_a_file_that_holds_no_rows_is_refused_by_name(tmp_path, data, message):
    (tmp_path / "a.jsonl").write_bytes(data)
    with pytest.raises(ValueError, match=rf"a\.jsonl.*{message}"):
        _read(tmp_path / "a.jsonl")


def test_half_a_gzip_file_is_refused(tmp_path):
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(LINES.encode() * 100, mtime=0)[:-20])
    with pytest.raises(ValueError, match="not a whole gzip file"):
        _read(tmp_path / "a.jsonl.gz")


def test_a_missing_file_suggests_near_names(tmp_path):
    (tmp_path / "train.jsonl").write_text(LINES)
    with pytest.raises(ValueError, match=r"trian.jsonl does not exist; did you mean train.jsonl\?"):
        _read(tmp_path / "trian.jsonl")
    with pytest.raises(ValueError, match="nor does the folder"):
        _read(tmp_path / "no" / "train.jsonl")


def test_an_unknown_suffix_is_refused(tmp_path):
    (tmp_path / "a.csv").write_text("text\none\n")
    with pytest.raises(ValueError, match="expected a file ending in .jsonl"):
        _read(tmp_path / "a.csv")


def test_a_folder_gives_the_files_of_its_split_in_order(tmp_path):
    for name in ("train-00001.jsonl", "train-00000.jsonl", "test.jsonl"):
        (tmp_path / name).write_text(json.dumps({"text": name}) + "\n")
    texts = [row["text"] for _, row in _read(tmp_path)]
    assert texts == ["train-00000.jsonl", "train-00001.jsonl"]
    with pytest.raises(ValueError, match="no split 'dev'; its files name test, train"):
        _read(tmp_path, split="dev")


def test_a_folder_without_split_names_is_all_train(tmp_path):
    (tmp_path / "b.jsonl").write_text(LINES)
    (tmp_path / "a.txt").write_text("zero")
    assert len(_read(tmp_path)) == 3
    with pytest.raises(ValueError, match="no split 'test'"):
        _read(tmp_path, split="test")


def test_a_saved_data_set_is_read(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)}).save_to_disk(tmp_path / "saved")
    assert _read(tmp_path / "saved") == [(f"{tmp_path / 'saved'}[train]:{i + 1}", ROWS[i]) for i in range(2)]
    with pytest.raises(ValueError, match="no split 'test'; it has train"):
        _read(tmp_path / "saved", split="test")


def test_a_hub_id_goes_to_the_datasets_library(monkeypatch):
    datasets = pytest.importorskip("datasets")
    calls = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: calls.append((args, kwargs)) or ROWS)
    assert _read("openai/gsm8k:main", split="test")[0] == ("openai/gsm8k:main[test]:1", ROWS[0])
    assert calls == [(("openai/gsm8k", "main"), {"split": "test"})]


def test_an_unknown_hub_id_says_what_the_hub_said(monkeypatch):
    datasets = pytest.importorskip("datasets")

    def refuse(*args, **kwargs):
        raise datasets.exceptions.DatasetNotFoundError("no such data set")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(ValueError, match=r"no file or folder here, and as a hub id .*no such data set$"):
        _read("no/such")


def test_without_a_network_the_command_that_fetches_a_hub_id_is_named(monkeypatch):
    datasets = pytest.importorskip("datasets")

    def refuse(*args, **kwargs):
        raise ConnectionError("Couldn't reach 'no/such' on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(ValueError, match="run: hf download --repo-type dataset no/such --local-dir FOLDER, and give"):
        _read("no/such:main")
