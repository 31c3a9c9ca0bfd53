import pytest

from jaxrlhf.config_text import Node, read


def _read(folder, content):
    path = folder / "run.yaml"
    path.write_bytes(content)
    return read(path, [])


def test_texts_keep_their_lines(tmp_path):
    root = _read(tmp_path, b"a:\n  b: 1e-5\nc: [x, 'y']\n")
    path = tmp_path / "run.yaml"
    assert root.value["a"].value["b"] == Node("1e-5", f"{path}:2")
    assert root.value["c"].value == [Node("x", f"{path}:3"), Node("y", f"{path}:3", quoted=True)]


def test_empty_file_is_an_empty_mapping(tmp_path):
    assert _read(tmp_path, b"# nothing\n").value == {}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: *x", "run.yaml:1: anchors and aliases"),
        (b"a: &x [1]\nb: 2", "run.yaml:1: anchors and aliases"),
        (b"b: 1\na: !!python/object/apply:os.system [ls]", "run.yaml:2: tags such as"),
        (b"a: " + b"[" * 5000, "run.yaml:1: nested more than 20 deep"),
        (b"a: 1\n\tb: 2", "run.yaml:2: not YAML"),
        (b"a: 1\n---\nb: 2", "not YAML: but found another document"),
        (b"- a", "found a list, expected a mapping of keys to values"),
        (b"? [a]\n: 1", "run.yaml:1: a key must be a name"),
        (b"a: \x00", "not YAML"),
        (b"a: \xff", "not UTF-8 at byte 3"),
        (b"a: " + b"x" * 1_000_000, "1000003 bytes, but a config has at most 1000000"),
    ],
)
def test_what_is_no_plain_yaml_is_refused(tmp_path, content, message):
    with pytest.raises(ValueError) as error:
        _read(tmp_path, content)
    assert message in str(error.value)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="none.yaml: there is no such file"):
        read(tmp_path / "none.yaml", [])


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("1", "int"),
        ("-1_000", "int"),
        ("1.", "float"),
        (".5", "float"),
        ("1e-5", "float"),
        ("1__0", "string"),
        ("~", "null"),
        ("TRUE", "bool"),
        ("yes", "string"),
        ("1e", "string"),
    ],
)
def test_kind(text, kind):
    assert Node(text, "here").kind == kind
    assert Node(text, "here", quoted=True).kind == "string"
