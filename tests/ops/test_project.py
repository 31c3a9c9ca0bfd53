import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrlhf.ops.project import activated, project, project_activated


def arrays(*leading: int, dtype=jnp.float32) -> tuple[jax.Array, jax.Array, jax.Array]:
    rng = np.random.default_rng(0)
    shapes = ((*leading, 5), (5, 3), (*leading, 3))
    return tuple(jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes)


@pytest.mark.parametrize("leading", [(4,), (2, 3), ()], ids=str)
def test_equals_the_product_and_its_gradients(leading: tuple[int, ...]):
    x, kernel, cotangent = arrays(*leading)
    expected, pull = jax.vjp(jnp.matmul, x, kernel)
    actual, own_pull = jax.vjp(project, x, kernel)
    np.testing.assert_array_equal(actual, expected)
    chex.assert_trees_all_close(own_pull(cotangent), pull(cotangent), rtol=1e-5, atol=1e-6)


def test_keeps_the_dtype():
    x, kernel, cotangent = arrays(2, 3, dtype=jnp.bfloat16)
    out, pull = jax.vjp(project, x, kernel)
    chex.assert_type([out, *pull(cotangent)], jnp.bfloat16)


def test_the_gradient_by_the_kernel_is_not_turned():
    x, kernel, _ = arrays(2, 3)

    def turned(product) -> list[tuple[int, ...]]:
        gradient = jax.grad(lambda kernel: jnp.sum(jnp.sin(product(x, kernel))))
        equations = jax.make_jaxpr(gradient)(kernel).jaxpr.eqns
        return [e.outvars[0].aval.shape for e in equations if e.primitive.name == "transpose"]

    assert kernel.shape in turned(jnp.matmul)  # it would be seen
    assert kernel.shape not in turned(project)


def gated(gate: jax.Array, up: jax.Array, kernel: jax.Array) -> jax.Array:
    return (gate / (1 + jnp.exp(-gate)) * up) @ kernel


@pytest.mark.parametrize("leading", [(4,), (2, 3)], ids=str)
def test_gated_equals_the_product_and_its_gradients(leading: tuple[int, ...]):
    gate, kernel, cotangent = arrays(*leading)
    expected, pull = jax.vjp(gated, gate, gate[::-1] + 1, kernel)
    own = functools.partial(project_activated, jax.nn.silu)
    actual, own_pull = jax.vjp(lambda *x: own(x[:2], x[2]), gate, gate[::-1] + 1, kernel)
    chex.assert_trees_all_close((actual, own_pull(cotangent)), (expected, pull(cotangent)), rtol=1e-5, atol=1e-6)


def test_gated_keeps_its_arguments_alone():
    gate, kernel, _ = arrays(2, 3)
    _, pull = jax.vjp(functools.partial(project_activated, jax.nn.silu), (gate, gate + 1), kernel)
    assert sorted(x.shape for x in jax.tree.leaves(pull)) == [(2, 3, 5), (2, 3, 5), (5, 3)]


def test_without_a_gate_the_activation_is_all():
    up, kernel, cotangent = arrays(4)
    expected, pull = jax.vjp(lambda up, kernel: jnp.tanh(up) @ kernel, up, kernel)
    actual, own_pull = jax.vjp(lambda up, kernel: project_activated(jnp.tanh, (up,), kernel), up, kernel)
    chex.assert_trees_all_close((actual, own_pull(cotangent)), (expected, pull(cotangent)), rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_equal(activated(jnp.tanh, (up,)), jnp.tanh(up))
