import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxrlhf.models.folder import ADAPTER
from jaxrlhf.models.identity import folder_digest
from jaxrlhf.models.peft import WEIGHTS
from tests.models.tiny import STORIES


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(STORIES, tmp_path / "model")


def test_a_copy_is_the_same_model(folder):
    assert folder_digest(folder) == folder_digest(STORIES)


def test_other_numbers_in_one_tensor_are_another_model_of_the_same_headers(folder):
    save_file(load_file(folder / "model.safetensors"), folder / "model.safetensors")
    before = folder_digest(folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"] * 2
    save_file(tensors, folder / "model.safetensors")
    assert folder_digest(folder) != before


def test_another_config_is_another_model(folder):
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(raw, indent=7))  # the same, written in another way
    assert folder_digest(folder) == folder_digest(STORIES)
    (folder / "config.json").write_text(json.dumps(raw | {"rope_theta": 5.0}))
    assert folder_digest(folder) != folder_digest(STORIES)


def test_adapters_count_with_what_they_stand_over_wherever_that_is(folder, tmp_path):
    digests = []
    for name, base, value in (("a", STORIES, 1.0), ("b", folder, 1.0), ("c", folder, 2.0)):
        (tmp_path / name).mkdir()
        config = {"base_model_name_or_path": str(base), "r": 1}
        (tmp_path / name / ADAPTER).write_text(json.dumps(config))
        save_file({"a": np.full(3, value, np.float32)}, tmp_path / name / WEIGHTS)
        digests.append(folder_digest(tmp_path / name))
    assert digests[0] == digests[1]
    assert len({*digests, folder_digest(folder)}) == 3
