import jax
import numpy as np
from jax.sharding import PartitionSpec

from jaxrlhf.sharding.mesh import make_mesh
from jaxrlhf.sharding.place import place_batch, place_replicated, process_rows, to_host


def test_rows_are_divided_over_data_and_fsdp_and_come_back_whole():
    batch = {"tokens": np.arange(24).reshape(8, 3), "length": np.arange(8)}
    placed = place_batch(batch, make_mesh(2, 2, 2))
    assert placed["tokens"].sharding.spec == PartitionSpec(("data", "fsdp"))
    assert {shard.data.shape for shard in placed["tokens"].addressable_shards} == {(2, 3)}
    jax.tree.map(np.testing.assert_array_equal, to_host(placed), batch)


def test_replicated_values_are_whole_on_every_device():
    placed = place_replicated({"x": np.arange(6).reshape(2, 3), "rate": 0.5}, make_mesh(2, 2, 2))
    assert len(placed["x"].addressable_shards) == 8 and placed["x"].is_fully_replicated
    np.testing.assert_array_equal(placed["x"].addressable_shards[5].data, [[0, 1, 2], [3, 4, 5]])
    assert float(placed["rate"]) == 0.5


def test_a_process_by_itself_loads_all_rows():
    assert process_rows(make_mesh(2, 2, 2), 8) == slice(0, 8)


def test_to_host_leaves_numpy_alone():
    value = np.arange(3)
    assert to_host({"x": value})["x"] is value
