import dataclasses

import pytest
from safetensors import safe_open

from jaxrlhf.models.folder import read_config
from jaxrlhf.models.tensors import flatten, tensor_entries
from tests.models.tiny import SCALAR, STORIES, TINY


def test_the_table_names_every_tensor_of_a_real_file_with_its_shape():
    with safe_open(STORIES / "model.safetensors", framework="numpy") as file:
        published = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
    assert {entry.name: entry.shape for entry in tensor_entries(read_config(STORIES))} == published


@pytest.mark.parametrize(
    ("config", "heads"),
    [(TINY, {"lm_head.weight"}), (dataclasses.replace(TINY, tie_embeddings=True), set()), (SCALAR, {"score.weight"})],
)
def test_a_model_has_its_own_head_alone(config, heads):
    names = {entry.name for entry in tensor_entries(config)}
    assert names & {"lm_head.weight", "score.weight"} == heads
    assert len(names) == 2 + 3 * 9 + len(heads)


def test_paths_join_the_keys():
    assert flatten({"a": {"b": 1}, "layers": ({"c": 2},)}) == {"a/b": 1, "layers/0/c": 2}
