import dataclasses

import numpy as np
import pytest
from safetensors import safe_open

from jaxrlhf.models.families.family import Tensor
from jaxrlhf.models.folder import FAMILIES, read_config
from jaxrlhf.models.tensors import Entry, flatten, tensor_entries
from tests.models.tiny import SCALAR, STORIES, TINY

# Two heads of a part with 2 outputs each, then of one with 1: published columns a0 a1 b0, a2 a3 b1.
FUSED = Entry("qkv", (6, 4), ("a", "b"), ((4, 4), (4, 2)), layer=0, transpose=True, groups=2)


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


def test_parts_alternate_group_by_group():
    a, b = np.arange(16).reshape(4, 4), 100 + np.arange(8).reshape(4, 2)
    whole = FUSED.join([a, b])
    assert whole.shape == FUSED.shape
    np.testing.assert_array_equal(whole.T, np.stack([a[:, 0], a[:, 1], b[:, 0], a[:, 2], a[:, 3], b[:, 1]], axis=1))


@pytest.mark.parametrize("columns", [slice(0, 4), slice(1, 3), slice(2, 4), slice(3, 4), slice(0, 2)])
def test_runs_find_the_columns_of_a_part_again(columns):
    a = np.arange(16).reshape(4, 4)
    whole = FUSED.join([a, -a[:, :2]]).T
    found = np.concatenate([whole[:, run] for run in FUSED.runs("a", columns)], axis=1)
    np.testing.assert_array_equal(found, a[:, columns])
    last = np.concatenate([whole[:, run] for run in FUSED.runs("b", slice(1, 2))], axis=1)
    np.testing.assert_array_equal(last, -a[:, 1:2])


def test_a_table_that_holds_a_parameter_twice_or_not_at_all_is_refused(monkeypatch):
    llama = FAMILIES["llama"]
    norm = next(row for row in llama.tensors if row.path == "layers/input_layernorm/scale")
    for tensors in (llama.tensors[1:], (*llama.tensors, llama.tensors[0]), (*llama.tensors, norm)):
        monkeypatch.setitem(FAMILIES, "llama", dataclasses.replace(llama, tensors=tensors))
        with pytest.raises(AssertionError, match="the table of llama must cover each parameter once"):
            tensor_entries(TINY)


def test_a_fused_row_has_the_shape_of_its_parts_together(monkeypatch):
    llama, up = FAMILIES["llama"], tuple(f"layers/mlp/{name}_proj/kernel" for name in ("gate", "up"))
    rows = [row for row in llama.tensors if row.path not in up]
    fused = Tensor("model.layers.{layer}.gate_up.weight", up, transpose=True)
    monkeypatch.setitem(FAMILIES, "llama", dataclasses.replace(llama, tensors=(*rows, fused)))
    entry = next(entry for entry in tensor_entries(TINY) if entry.name == "model.layers.2.gate_up.weight")
    assert (entry.shape, entry.shapes, entry.layer, entry.groups) == ((96, 32), ((32, 48), (32, 48)), 2, 1)


def test_paths_join_the_keys():
    assert flatten({"a": {"b": 1}, "layers": ({"c": 2},)}) == {"a/b": 1, "layers/0/c": 2}
