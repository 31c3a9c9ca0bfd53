import pytest

from jaxrlhf.data.config import DataConfig, DatasetConfig
from jaxrlhf.data.rowlog import RowLog
from jaxrlhf.data.sources import Conversion, checked_rows


def _rows(kind, source, log=None, number=1, **fields):
    return list(checked_rows(kind, source, number, DataConfig(**fields), log or RowLog(), Conversion()))


def test_rows_in_memory_are_numbered_and_bad_ones_collected():
    log = RowLog()
    rows = _rows("sft", [{"text": "a"}, {"text": ""}, {"txt": "c"}], log)
    assert [row.where for row in rows] == ["row 1"]
    assert [problem.split(":")[0] for problem in log.problems] == ["row 2", "row 3"]
    assert (log.read, log.rejected) == (3, 2)


def test_a_second_data_set_in_memory_is_named():
    assert _rows("sft", [{"text": "a"}], number=2)[0].where == "data set 2, row 1"


def test_text_among_messages_is_refused_with_both_places():
    log = RowLog()
    _rows("prompt", [{"prompt": "a"}, {"prompt": [{"role": "user", "content": "b"}]}], log)
    assert log.problems == ["row 2: the row is messages, but row 1 is text; a data set holds one or the other"]


def test_the_layout_found_is_noted_once():
    log = RowLog()
    _rows("sft", [{"text": "a"}, {"text": "b"}], log)
    assert log.notes == ["rows in memory: read as text (text)"]


def test_a_data_set_overrides_the_default_layout(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"q": "a", "text": "b"}\n')
    source = DatasetConfig(path=str(tmp_path / "a.jsonl"), columns={"prompt": "q"})
    assert _rows("prompt", source, columns={"prompt": "text"})[0].prompt == "a"


def test_a_layout_that_does_not_suit_is_refused():
    with pytest.raises(ValueError, match="format=text feeds sft, but 'prompt' is needed"):
        _rows("prompt", [{"text": "a"}], format="text")


def test_unknown_columns_name_the_row():
    with pytest.raises(ValueError, match="^row 1: columns a fit no layout for 'sft'"):
        _rows("sft", [{"a": 1}])


def test_columns_that_are_no_pairs_name_the_layouts_of_rankings():
    with pytest.raises(ValueError, match=r"; or, for a reward model, ranked \(prompt, completions, ranks\); kwise"):
        _rows("preference", [{"prompt": "a", "completion": "b"}])
    with pytest.raises(ValueError) as error:
        _rows("sft", [{"a": 1}])
    assert "reward model" not in str(error.value)


def test_rows_given_without_their_list_are_refused():
    with pytest.raises(TypeError, match="expected each data set in memory as a list of dicts"):
        _rows("sft", {"text": "a"})
