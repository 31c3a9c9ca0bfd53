"""Names of parameter values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxrlhf.checkpoint.fingerprint import fingerprint
from jaxrlhf.sharding.mesh import make_mesh

PARAMS = {"kernel": np.arange(32, dtype=np.float32).reshape(8, 4) / 7, "scale": np.ones(8, np.float32)}


def test_equal_values_have_one_name_however_they_are_spread():
    mesh = make_mesh(data=1, fsdp=4, tensor=2)
    sharding = NamedSharding(mesh, PartitionSpec("fsdp"))
    assert fingerprint(jax.device_put(PARAMS, sharding)) == fingerprint(jax.tree.map(jnp.asarray, PARAMS))


@pytest.mark.parametrize("change", ["one value by one bit", "two values exchanged", "another shape", "another name"])
def test_other_values_have_another_name(change):
    other = jax.tree.map(np.copy, PARAMS)
    if change == "one value by one bit":
        other["kernel"][3, 2] = np.nextafter(other["kernel"][3, 2], np.float32(9))
    elif change == "two values exchanged":
        other["kernel"][[1, 2]] = other["kernel"][[2, 1]]
    elif change == "another shape":
        other["kernel"] = other["kernel"].reshape(4, 8)
    else:
        other["weight"] = other.pop("kernel")
    assert fingerprint(other) != fingerprint(PARAMS)


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_fewer_bits_have_a_name_too(dtype):
    few = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), PARAMS)
    assert fingerprint(few) != fingerprint(PARAMS)
    other = {**few, "kernel": few["kernel"].at[3, 2].add(1)}
    assert fingerprint(other) != fingerprint(few)


def test_rows_far_apart_are_told_apart_where_the_low_bits_are_0():
    table = np.asarray(jnp.asarray(np.arange(16 * 4096) % 251 + 1.0, jnp.bfloat16).astype(jnp.float32)).reshape(
        16, 4096
    )
    swapped = table.copy()
    swapped[[1, 9]] = table[[9, 1]]
    assert (swapped != table).any() and fingerprint({"t": table}) != fingerprint({"t": swapped})
