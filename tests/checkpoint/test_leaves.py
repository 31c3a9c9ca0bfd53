import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrlhf.checkpoint import leaves
from jaxrlhf.types import TrainState


def test_names_are_paths_in_the_order_of_flattening():
    state = TrainState(params={"b": 1, "a": [2, {"c": 3}]}, opt_state=(4,), step=5)
    assert leaves.named(state) == {"params/a/0": 2, "params/a/1/c": 3, "params/b": 1, "opt_state/0": 4, "step": 5}


def test_leaves_of_one_name_are_refused():
    with pytest.raises(ValueError, match="two leaves are called 'a/b'"):
        leaves.named({"a": {"b": 1}, "a/b": 2})


def test_layouts_of_arrays_and_shapes():
    tree = {"a": jnp.ones((2, 3), jnp.bfloat16), "b": jax.ShapeDtypeStruct((), jnp.int32), "c": np.zeros(1)}
    assert leaves.layouts(tree) == {"a": ["bfloat16", [2, 3]], "b": ["int32", []], "c": ["float64", [1]]}


def test_abstract_leaves_have_a_sharding():
    array = jax.device_put(jnp.ones(2), jax.devices()[3])
    abstract = leaves.abstract({"a": array, "b": jax.ShapeDtypeStruct((2,), jnp.float32), "c": np.ones(2)})
    assert abstract["a"].sharding == array.sharding
    assert abstract["b"].sharding.device_set == {jax.devices()[0]}
    assert isinstance(abstract["c"], np.ndarray)
