import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from jaxrlhf.checkpoint.shards import open_shard, plan_shards


def test_shards_are_filled_in_order_up_to_the_limit():
    assert plan_shards({"a": 4, "b": 6, "c": 1, "d": 20, "e": 1}, 10) == [["a", "b"], ["c"], ["d"], ["e"]]


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_safetensors_reads_what_was_written_piece_by_piece(tmp_path, dtype):
    rng = np.random.default_rng(0)
    tensors = {"b": rng.normal(size=(3, 5)).astype(dtype), "a": rng.normal(size=7).astype(dtype)}
    file = tmp_path / "model.safetensors"
    with open_shard(file, {name: value.shape for name, value in tensors.items()}, np.dtype(dtype)) as append:
        append(np.asfortranarray(tensors["b"]))
        append(tensors["a"])
    found = load_file(file)
    assert found.keys() == tensors.keys()
    for name, value in tensors.items():
        assert found[name].dtype == dtype
        np.testing.assert_array_equal(found[name], value)
    with safe_open(file, framework="numpy") as handle:
        assert handle.metadata() == {"format": "pt"}


def test_another_tensor_than_the_one_announced_is_refused(tmp_path):
    with pytest.raises(AssertionError, match="another tensor was announced"):
        with open_shard(tmp_path / "x", {"a": (2,)}, np.dtype(np.float32)) as append:
            append(np.zeros(3, np.float32))
