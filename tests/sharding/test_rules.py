import jax
import optax
import pytest
from jax.sharding import PartitionSpec

from jaxrlhf.models.decoder import param_shapes
from jaxrlhf.sharding.mesh import make_mesh
from jaxrlhf.sharding.rules import shardings_for
from tests.models.tiny import SCALAR, TINY

MESH = make_mesh(2, 2, 2)


def specs(tree):
    return jax.tree.map(lambda sharding: sharding.spec, shardings_for(tree, MESH)[0])


def test_each_parameter_of_the_decoder_is_divided_as_ruled():
    found = specs(param_shapes(TINY))
    assert found["embed_tokens"]["embedding"] == found["lm_head"]["kernel"] == PartitionSpec("tensor", "fsdp")
    attention, mlp = found["layers"]["self_attn"], found["layers"]["mlp"]
    for wide in (attention["q_proj"], attention["k_proj"], attention["v_proj"], mlp["gate_proj"], mlp["up_proj"]):
        assert wide["kernel"] == PartitionSpec(None, "fsdp", "tensor")
    for narrow in (attention["o_proj"], mlp["down_proj"]):
        assert narrow["kernel"] == PartitionSpec(None, "tensor", "fsdp")
    assert found["norm"]["scale"] == PartitionSpec(None)
    assert specs(param_shapes(SCALAR))["score"]["kernel"] == PartitionSpec(None, None)


def test_rules_name_the_last_axes_so_unstacked_layers_match_too():
    layer = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), param_shapes(TINY)["layers"])
    found = specs({"layers": (layer,)})
    assert found["layers"][0]["mlp"]["up_proj"]["kernel"] == PartitionSpec("fsdp", "tensor")


def test_optimizer_states_follow_their_parameters_and_scalars_are_replicated():
    params = param_shapes(TINY)
    state = jax.eval_shape(optax.adamw(1.0).init, params)
    found = specs(state)
    assert found[0].mu == found[0].nu == specs(params)
    assert found[0].count == PartitionSpec()


def test_a_dimension_that_does_not_divide_is_kept_whole_and_named():
    tree = {"mlp": {"up_proj": {"kernel": jax.ShapeDtypeStruct((3, 4, 5), "float32")}}}
    shardings, kept = shardings_for(tree, MESH)
    assert shardings["mlp"]["up_proj"]["kernel"].spec == PartitionSpec(None, "fsdp", None)
    assert [str(line) for line in kept] == [
        "mlp/up_proj/kernel: dimension 2 of 5 does not divide over tensor=2; kept whole"
    ]


def test_arrays_without_a_rule_are_named_together():
    with pytest.raises(ValueError, match=r"no sharding rule matches a/b \(2,\), c \(3, 4\)"):
        specs({"a": {"b": jax.ShapeDtypeStruct((2,), "float32")}, "c": jax.ShapeDtypeStruct((3, 4), "float32")})
