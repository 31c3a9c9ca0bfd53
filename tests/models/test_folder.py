import json

import pytest

from jaxrlhf.models.folder import find_folder, read_config
from tests.models.tiny import STORIES


def test_a_local_folder_is_itself():
    assert find_folder(STORIES) == STORIES
    with pytest.raises(ValueError, match="revision='main' has no effect"):
        find_folder(STORIES, revision="main")


@pytest.mark.parametrize("path", ["nowhere", "../owner/name", "/owner/name", "a/b/c"])
def test_what_is_neither_a_folder_nor_a_hub_name_is_refused(path):
    with pytest.raises(ValueError, match="there is no such folder, and it is not a hub name"):
        find_folder(path)


def test_without_a_network_the_command_is_named(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="run: hf download no-such-owner/name --revision v1 --local-dir FOLDER"):
        find_folder("no-such-owner/name", revision="v1")


def test_a_real_config_is_read():
    config = read_config(STORIES)
    assert (config.num_layers, config.hidden_size, config.num_kv_heads, config.tie_embeddings) == (5, 64, 4, True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (json.dumps({"model_type": "gpt2"}), r"model_type='gpt2' is not supported; supported are \['llama'\]"),
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
