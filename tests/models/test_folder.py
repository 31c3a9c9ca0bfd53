import json
import shutil

import pytest

from jaxrlhf.models.folder import find_folder, read_config
from tests.models.tiny import STORIES

UNREACHABLE = (
    r"it could not be fetched from the hub \(the hub cannot be reached\); where it can be, run: "
    r"hf download no-such-owner/name --revision v1 --local-dir FOLDER, and give FOLDER here$"
)


def test_a_local_folder_is_itself():
    assert find_folder(STORIES) == STORIES
    with pytest.raises(ValueError, match="revision='main' has no effect"):
        find_folder(STORIES, revision="main")


def test_the_folder_of_a_run_is_no_model_but_its_export_is(tmp_path):
    (tmp_path / "metrics.jsonl").touch()
    with pytest.raises(ValueError, match=f"{tmp_path} is the folder of a run; give {tmp_path}/export"):
        find_folder(tmp_path)


@pytest.mark.parametrize("path", ["nowhere", "../owner/name", "/owner/name", "a/b/c"])
def test_what_is_neither_a_folder_nor_a_hub_name_is_refused(path):
    with pytest.raises(ValueError, match="there is no such folder, and it is not a hub name"):
        find_folder(path)


def test_without_a_network_the_command_is_named(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=UNREACHABLE):
        find_folder("no-such-owner/name", revision="v1")


def test_without_a_network_what_was_fetched_before_is_found(monkeypatch, tmp_path):
    kept = tmp_path / "models--owner--name"
    (kept / "refs").mkdir(parents=True)
    (kept / "refs" / "main").write_text("1" * 40)
    snapshot = kept / "snapshots" / ("1" * 40)
    snapshot.mkdir(parents=True)
    shutil.copy(STORIES / "config.json", snapshot)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert find_folder("owner/name") == snapshot
    assert read_config(find_folder("owner/name", revision="1" * 40)).num_layers == 5


@pytest.mark.parametrize(
    "labels", [{"num_labels": 2}, {"id2label": {"0": "bad", "1": "good"}}, {"id2label": {"0": "a"}, "num_labels": 3}]
)
def test_a_classifier_of_several_labels_is_no_reward_model(tmp_path, labels):
    raw = json.loads((STORIES / "config.json").read_text()) | {"architectures": ["LlamaForSequenceClassification"]}
    (tmp_path / "config.json").write_text(json.dumps(raw | labels))
    with pytest.raises(ValueError, match=r"config.json: the model has num_labels=[23]; a reward model gives each"):
        read_config(tmp_path)
    for one in ({}, {"num_labels": 1}, {"id2label": {"0": "score"}}):
        (tmp_path / "config.json").write_text(json.dumps(raw | one))
        assert read_config(tmp_path).scalar_head


def test_a_real_config_is_read():
    config = read_config(STORIES)
    assert (config.num_layers, config.hidden_size, config.num_kv_heads, config.tie_embeddings) == (5, 64, 4, True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (json.dumps({"model_type": "t5"}), r"model_type='t5' is not supported; supported are \['gemma2', .*'qwen3'\]"),
        ("[]", "holds a list; expected an object"),
        ("{", "is not JSON"),
        (None, "config.json is missing"),
    ],
)
def test_a_broken_config_is_named(tmp_path, content, message):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_config(tmp_path)
