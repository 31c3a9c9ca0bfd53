"""What is particular to walking by tiles; the numbers themselves are checked in `test_linear_logprobs.py`."""

import math
from collections.abc import Iterator

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import ClosedJaxpr, Jaxpr

from jaxrlhf.kernels import linear_logprobs, tiles
from jaxrlhf.types import Head

WANT = ("logp", "entropy")
WITH_KL = ("logp", "kl", "ref_logp", "entropy")


def set_tile(monkeypatch: pytest.MonkeyPatch, columns: int, rows: int = 8) -> None:
    monkeypatch.setitem(tiles.TILES, "cpu", tiles.TileSize(rows, columns))


def random_arrays(rows: int, width: int, vocab: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    rng = np.random.default_rng(0)
    hidden, weight = (jnp.asarray(rng.normal(size=(n, width)) / width**0.5, jnp.float32) for n in (rows, vocab))
    return hidden, weight, jnp.asarray(rng.integers(vocab, size=rows))


def value_and_gradients(
    targets: jax.Array, *, want: tuple[str, ...] = WANT, implementation: str | None = None, **head_fields
):
    """A function of hidden states and weight that ends in a scalar, which every wanted field is part of."""

    def total(hidden, weight):
        head = Head(weight=weight, **head_fields)
        ref = (jnp.tanh(hidden), head) if "kl" in want else None
        out = linear_logprobs(hidden, head, targets, want=want, ref=ref, implementation=implementation)
        return sum(jnp.sum(getattr(out, name)) / (1 + i) for i, name in enumerate(want))

    return jax.value_and_grad(total, (0, 1))


def shapes_in(jaxpr: Jaxpr) -> Iterator[tuple[int, ...]]:
    """Shapes of everything that a jaxpr computes, the bodies of its loops and calls included."""
    for equation in jaxpr.eqns:
        yield from (variable.aval.shape for variable in equation.outvars)
        for parameter in jax.tree.leaves(equation.params, is_leaf=is_jaxpr):
            if is_jaxpr(parameter):
                yield from shapes_in(getattr(parameter, "jaxpr", parameter))


def is_jaxpr(x: object) -> bool:
    return isinstance(x, Jaxpr | ClosedJaxpr)


@pytest.mark.parametrize("want", [WANT, WITH_KL])
@pytest.mark.parametrize("length", [128, 384, 1024])
def test_tile_size_does_not_change_the_result(monkeypatch: pytest.MonkeyPatch, length: int, want: tuple[str, ...]):
    hidden, weight, targets = random_arrays(5, 8, 1000)
    head_fields = {"softcap": 3.0, "scale": 2.0, "vocab_size": 990}
    expected = jax.jit(value_and_gradients(targets, want=want, implementation="reference", **head_fields))(
        hidden, weight
    )
    set_tile(monkeypatch, length)
    actual = jax.jit(value_and_gradients(targets, want=want, implementation="chunked", **head_fields))(hidden, weight)
    chex.assert_trees_all_close(actual, expected, rtol=1e-5, atol=1e-6)


def test_targets_in_the_columns_that_two_tiles_share_count_once(monkeypatch: pytest.MonkeyPatch):
    set_tile(monkeypatch, 384)  # tiles begin at 0, 384 and 616: columns 616 to 767 are visited twice
    targets = jnp.asarray([615, 616, 700, 767, 768, 999])
    hidden, weight, _ = random_arrays(6, 8, 1000)
    expected = jax.jit(value_and_gradients(targets, implementation="reference"))(hidden, weight)
    actual = jax.jit(value_and_gradients(targets, implementation="chunked"))(hidden, weight)
    chex.assert_trees_all_close(actual, expected, rtol=1e-5, atol=1e-6)


def test_the_target_and_the_largest_logit_may_come_in_any_tile(monkeypatch: pytest.MonkeyPatch):
    set_tile(monkeypatch, 128)
    hidden = jnp.ones((3, 1))
    for peak in (0, 300, 511):
        weight = jnp.zeros((512, 1)).at[peak, 0].set(60.0)
        out = linear_logprobs(hidden, weight, jnp.asarray([peak, (peak + 1) % 512, 200]), want=("logp", "max_logit"))
        np.testing.assert_allclose(out.logp, [0.0, -60.0, -60.0], rtol=1e-6)
        np.testing.assert_array_equal(out.max_logit, np.full(3, 60.0))


@pytest.mark.parametrize("want", [WANT, WITH_KL])
def test_nothing_of_rows_by_vocabulary_is_computed(monkeypatch: pytest.MonkeyPatch, want: tuple[str, ...]):
    set_tile(monkeypatch, 128)
    rows, vocab = 24, 1000
    hidden, weight, targets = random_arrays(rows, 8, vocab)

    def largest(implementation: str) -> int:
        run = value_and_gradients(targets, want=want, implementation=implementation)
        shapes = shapes_in(jax.make_jaxpr(run)(hidden, weight).jaxpr)
        return max(math.prod(shape) for shape in shapes if shape != weight.shape)

    assert largest("reference") == rows * vocab  # the walk does see such an array where there is one
    assert largest("chunked") == 8 * 128


@pytest.mark.parametrize("want", [WANT, WITH_KL])
def test_what_the_backward_pass_keeps_does_not_grow_with_the_vocabulary(
    monkeypatch: pytest.MonkeyPatch, want: tuple[str, ...]
):
    set_tile(monkeypatch, 128)
    hidden, weight, targets = random_arrays(24, 8, 1000)

    def fields(hidden, weight):
        ref = (2.0 * hidden, weight) if "kl" in want else None
        out = linear_logprobs(hidden, weight, targets, want=want, ref=ref, implementation="chunked")
        return [field for field in out if field is not None]

    kept = jax.tree.leaves(jax.vjp(fields, hidden, weight)[1])
    extra = [x for x in kept if x.shape not in (hidden.shape, weight.shape, targets.shape, ())]
    assert not extra
    # Targets and four sums of the policy; with a KL three of the reference, and the KL itself.
    assert sum(x.shape == targets.shape for x in kept) <= (9 if "kl" in want else 5)


@pytest.mark.parametrize("want", [("logp",), ("logp", "lse", "entropy", "max_logit"), WITH_KL])
def test_compiled_memory_is_below_a_quarter_of_the_reference(monkeypatch: pytest.MonkeyPatch, want: tuple[str, ...]):
    set_tile(monkeypatch, 4096)
    rows, width, vocab = 512, 64, 32768
    hidden, weight = jax.ShapeDtypeStruct((rows, width), jnp.float32), jax.ShapeDtypeStruct((vocab, width), jnp.float32)

    def temporary_bytes(implementation: str) -> int:
        run = jax.jit(value_and_gradients(jnp.zeros(rows, int), want=want, implementation=implementation))
        return run.lower(hidden, weight).compile().memory_analysis().temp_size_in_bytes

    assert temporary_bytes("chunked") < temporary_bytes("reference") / 4
