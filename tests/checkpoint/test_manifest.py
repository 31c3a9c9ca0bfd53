import pytest

from jaxrlhf.checkpoint import manifest


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a").write_bytes(b"abc")
    (tmp_path / "b").write_bytes(b"")
    manifest.write_manifest(tmp_path, {"step": 3})
    return tmp_path


def test_files_and_facts_are_listed(folder):
    body = manifest.read_manifest(folder)
    assert body == {"version": 1, "step": 3, "files": {"b": [0, 0], "in/a": [3, 0x352441C2]}}  # crc32 of "abc"
    assert manifest.verify_files(folder) == []


def test_each_changed_file_is_named(folder):
    (folder / "in/a").write_bytes(b"abd")
    (folder / "b").write_bytes(b"x")
    assert manifest.verify_files(folder) == [
        f"{folder}/b has 1 bytes, expected 0",
        f"{folder}/in/a was changed after it was written: its checksum differs",
    ]


def test_missing_file_is_named(folder):
    (folder / "b").unlink()
    assert manifest.verify_files(folder) == [f"{folder}/b is missing"]


def test_changed_fact_is_noticed(folder):
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"step": 3', '"step": 4'))
    with pytest.raises(ValueError, match="manifest.json was changed after it was written"):
        manifest.read_manifest(folder)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"manifest": 1, "crc32": 2'])
def test_what_is_no_manifest_is_named(folder, text):
    (folder / "manifest.json").write_text(text)
    with pytest.raises(ValueError, match="manifest.json is no manifest"):
        manifest.read_manifest(folder)


def test_another_version_is_refused(folder, monkeypatch):
    monkeypatch.setattr(manifest, "_VERSION", 2)
    with pytest.raises(ValueError, match="has version 1, this jaxrlhf reads version 2"):
        manifest.read_manifest(folder)
