"""The hot path on a mesh against one device: values, gradients, and what devices send each other."""

import math
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from jaxrlhf.kernels import linear_logprobs
from jaxrlhf.kernels.division import Division, divide
from jaxrlhf.types import Head

ROWS, WIDTH, REF_WIDTH, VOCAB = 24, 16, 6, 1000
WANT = ("logp", "lse", "entropy", "max_logit", "kl", "ref_logp")

pytestmark = pytest.mark.usefixtures("small_tiles")


def make_mesh(*sizes: int):
    devices = jax.devices()[: math.prod(sizes)]
    return jax.make_mesh(sizes, ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3, devices=devices)


def make_arrays(rows: int = ROWS, vocab: int = VOCAB) -> dict[str, jax.Array]:
    rng = np.random.default_rng(0)
    shapes = {"hidden": (rows, WIDTH), "weight": (vocab, WIDTH), "bias": (vocab,)}
    shapes |= {"ref_hidden": (rows, REF_WIDTH), "ref_weight": (vocab, REF_WIDTH)}
    arrays = {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}
    return arrays | {
        "targets": jnp.asarray(rng.integers(vocab - 100, size=rows)),
        "mask": jnp.asarray(rng.random(rows) < 0.6),
    }


def total(trained: dict[str, jax.Array], fixed: dict[str, jax.Array], vocab_size: int):
    """A scalar that every output is part of, and the outputs."""
    out = linear_logprobs(
        trained["hidden"],
        Head(weight=trained["weight"], bias=trained["bias"], softcap=5.0, vocab_size=vocab_size),
        fixed["targets"],
        want=WANT,
        mask=fixed["mask"],
        ref=(trained["ref_hidden"], Head(weight=trained["ref_weight"].T, vocab_size=vocab_size, layout="dv")),
        ref_grad=True,
        temperature=0.8,
    )
    fields = (out.logp, out.lse, out.entropy, out.kl, out.ref_logp)
    return sum(jnp.sum(field) / (1 + i) for i, field in enumerate(fields)), out


def run(arrays: dict[str, jax.Array]):
    trained = {name: x for name, x in arrays.items() if x.dtype == jnp.float32}
    fixed = {name: x for name, x in arrays.items() if name not in trained}
    vocab_size = arrays["weight"].shape[0] - 10
    differentiate = jax.value_and_grad(lambda t, f: total(t, f, vocab_size), has_aux=True)
    return jax.device_get(jax.jit(differentiate)(trained, fixed))


@pytest.mark.parametrize("sizes", [(2, 1, 2), (1, 1, 4), (2, 2, 2), (1, 8, 1)], ids=str)
def test_a_mesh_equals_one_device(sizes: tuple[int, int, int]):
    arrays = make_arrays()
    expected = run(arrays)
    with jax.set_mesh(make_mesh(*sizes)):
        actual = run(arrays)
    chex.assert_trees_all_close(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("sizes", "rows"), [((1, 1, 2), ROWS), ((2, 2, 2), 21)], ids=str)
def test_a_wide_weight_gets_a_wide_gradient_whatever_is_divided(sizes: tuple[int, int, int], rows: int):
    arrays = make_arrays(rows)
    narrow = arrays["hidden"].astype(jnp.bfloat16)

    def total(weight):
        out = linear_logprobs(narrow, weight, arrays["targets"], want=("logp", "entropy"))
        return jnp.sum(out.logp + out.entropy)

    def gradient():
        return np.asarray(jax.jit(jax.grad(total))(arrays["weight"]))

    expected = gradient()
    assert np.any(expected != expected.astype(jnp.bfloat16).astype(np.float32))
    with jax.set_mesh(make_mesh(*sizes)):
        np.testing.assert_allclose(gradient(), expected, rtol=1e-4, atol=1e-4)


def test_what_does_not_divide_stays_whole_and_is_right():
    arrays = make_arrays(rows=21, vocab=997)
    expected = run(arrays)
    with jax.set_mesh(make_mesh(2, 2, 2)):
        actual = run(arrays)
    chex.assert_trees_all_close(actual, expected, rtol=1e-5, atol=1e-5)


def test_division_of_rows_words_and_width():
    assert divide(24, 1000, 16) == (Division(), 24, 1000)
    with jax.set_mesh(make_mesh(2, 2, 2)):
        assert divide(24, 1000, 16) == (Division(("data", "fsdp"), ("tensor",), ("fsdp",)), 6, 500)
        assert divide(24, 1001, 15) == (Division(("data", "fsdp")), 6, 1001)
        assert divide(23, 1000, 16) == (Division((), ("tensor",)), 23, 500)
    with jax.set_mesh(make_mesh(8, 1, 1)):
        assert divide(24, 1000, 16) == (Division(("data", "fsdp")), 3, 1000)


def test_another_mesh_divides_nothing():
    other = jax.make_mesh((8,), ("rows",), axis_types=(AxisType.Auto,))
    with jax.set_mesh(other):
        assert divide(24, 1000, 16)[0] == Division()


@pytest.mark.parametrize(("sizes", "most"), [((1, 1, 8), 16 * ROWS), ((8, 1, 1), 8 * VOCAB * WIDTH)], ids=str)
def test_devices_never_send_logits(sizes: tuple[int, int, int], most: int):
    # The forward pass sends a few numbers a row; with rows divided the backward pass adds up gradients of the head.
    arrays = make_arrays()
    gradient = sizes[0] > 1

    def loss(hidden, weight):
        out = linear_logprobs(hidden, weight, arrays["targets"], want=("logp", "entropy"))
        return jnp.sum(out.logp + out.entropy)

    function = jax.grad(loss, (0, 1)) if gradient else loss
    with jax.set_mesh(make_mesh(*sizes)):
        text = jax.jit(function).lower(arrays["hidden"], arrays["weight"]).compile().as_text()
    collective = r"= (.*) (?:all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\("
    results = [match[1] for match in re.finditer(collective, text)]
    sent = [math.prod(map(int, dims.split(","))) for result in results for dims in re.findall(r"\[([\d,]+)\]", result)]
    assert sent  # something is
    assert max(sent) < ROWS * VOCAB
    assert sum(sent) <= most
