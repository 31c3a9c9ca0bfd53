"""`fused_token_loss` against the same loss of `linear_logprobs`, in value, metrics and gradient."""

import contextlib
import functools
import os
import subprocess
import sys
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import ClosedJaxpr, Jaxpr
from jax.sharding import AxisType

from jaxrlhf import losses
from jaxrlhf.kernels import fused_token_loss, linear_logprobs, tiles
from jaxrlhf.ops.stats import Max, Sum, max_of, mean_of
from jaxrlhf.types import Head, LogprobOut

ROWS, WIDTH, VOCAB = 24, 16, 1000
WANT = ("logp", "lse", "entropy", "max_logit")

pytestmark = pytest.mark.usefixtures("small_tiles")


class Problem(NamedTuple):
    """Arrays of a policy and a reference, and what a loss reads of each token."""

    hidden: jax.Array
    head: Head
    ref: tuple[jax.Array, Head]
    targets: jax.Array
    aux: dict[str, jax.Array]
    mask: jax.Array


def make_problem(*, bias: bool = False, **head_fields) -> Problem:
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    return Problem(
        hidden=normal(ROWS, WIDTH),
        head=Head(weight=normal(VOCAB, WIDTH) / 4, bias=normal(VOCAB) if bias else None, **head_fields),
        ref=(normal(ROWS, 6), Head(weight=normal(VOCAB, 6) / 2, vocab_size=head_fields.get("vocab_size"))),
        targets=jnp.asarray(rng.integers(900, size=ROWS)),
        aux={"advantages": normal(ROWS), "old": normal(ROWS) - 7},
        mask=jnp.asarray(rng.random(ROWS) < 0.6),
    )


def clipped(out: LogprobOut, mask: jax.Array, aux: dict[str, jax.Array], given: dict[str, jax.Array]):
    """A loss with a kink, a second output in it, and every kind of metric."""
    ratio = jnp.exp(jnp.where(mask, out.logp - aux["old"], 0.0))
    costs = jnp.maximum(-ratio * aux["advantages"], -jnp.clip(ratio, 0.8, 1.2) * aux["advantages"])
    loss = jnp.sum(jnp.where(mask, costs - given["bonus"] * out.entropy, 0.0)) / given["tokens"]
    best = out.logp >= out.max_logit - out.lse
    return loss, {"accuracy": mean_of(best, mask), "ratio": max_of(ratio, mask), "entropy": mean_of(out.entropy, mask)}


def with_kl(out: LogprobOut, mask: jax.Array, aux: dict[str, jax.Array], given: dict[str, jax.Array]):
    del aux
    return jnp.sum(jnp.where(mask, out.logp * 0.3 + out.kl, 0.0)) / given["tokens"], {"kl": mean_of(out.kl, mask)}


GIVEN = {"tokens": jnp.asarray(11.0), "bonus": jnp.asarray(0.1)}


def plain(loss_fn, hidden, head, targets, aux, given, *, mask=None, **options):
    out = linear_logprobs(hidden, head, targets, mask=mask, **options)
    return loss_fn(out, jnp.ones(targets.shape, bool) if mask is None else mask, aux, given)


def differentiated(function, loss_fn, problem: Problem, mask: jax.Array | None = None, **options):
    """Loss and metrics, and the gradient by hidden states and head."""

    @jax.jit
    @functools.partial(jax.value_and_grad, argnums=(0, 1), has_aux=True)
    def run(hidden, head):
        return function(loss_fn, hidden, head, problem.targets, problem.aux, GIVEN, mask=mask, **options)

    return run(problem.hidden, problem.head)


def assert_same(problem: Problem, loss_fn, *, mask: jax.Array | None, **options) -> None:
    expected = differentiated(plain, loss_fn, problem, mask, **options)
    actual = differentiated(fused_token_loss, loss_fn, problem, mask, **options)
    chex.assert_trees_all_close(actual, expected, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    "head_fields",
    [{}, {"bias": True, "softcap": 3.0, "scale": 0.7, "vocab_size": 901}],
    ids=["plain", "everything"],
)
def test_equals_the_loss_of_the_outputs(head_fields: dict[str, Any], masked: bool):
    problem = make_problem(**head_fields)
    mask = problem.mask if masked else None
    assert_same(problem, clipped, mask=mask, want=WANT, temperature=0.7)


def test_equals_the_loss_of_a_kl():
    problem = make_problem(vocab_size=901)
    assert_same(problem, with_kl, mask=problem.mask, want=("logp", "kl"), ref=problem.ref)


def test_a_head_with_the_other_layout_gives_the_same():
    problem = make_problem()
    turned = problem._replace(head=Head(weight=problem.head.weight.T, layout="dv"))
    value, (d_hidden, d_head) = differentiated(fused_token_loss, clipped, problem, problem.mask, want=WANT)
    other, (d_turned, d_turned_head) = differentiated(fused_token_loss, clipped, turned, problem.mask, want=WANT)
    chex.assert_trees_all_close(
        (other, d_turned, d_turned_head.weight.T), (value, d_hidden, d_head.weight), rtol=1e-5, atol=1e-6
    )


def test_what_is_masked_is_zero_for_the_loss_with_and_without_a_gradient():
    problem = make_problem()
    aux = {"weights": jnp.where(problem.mask, problem.aux["advantages"], jnp.nan)}

    def careless(out: LogprobOut, mask: jax.Array, aux: dict[str, jax.Array], given: None):
        return jnp.sum(jnp.expm1(out.logp) * aux["weights"]), {}

    def loss(hidden):
        return fused_token_loss(careless, hidden, problem.head, problem.targets, aux, mask=problem.mask)[0]

    logp = linear_logprobs(problem.hidden, problem.head, problem.targets).logp
    expected = jnp.sum(jnp.where(problem.mask, jnp.expm1(logp) * problem.aux["advantages"], 0.0))
    np.testing.assert_allclose(jax.jit(loss)(problem.hidden), expected, rtol=1e-5)
    np.testing.assert_allclose(jax.jit(jax.value_and_grad(loss))(problem.hidden)[0], expected, rtol=1e-5)


_PROGRAM = """
import hashlib
import jax, jax.numpy as jnp
from jaxrlhf.kernels import fused_token_loss
from jaxrlhf.ops.stats import mean_of

def loss(hidden, weight):
    def of_tokens(out, mask, aux, given):
        best = out.logp >= out.max_logit - out.lse
        return jnp.sum(out.logp), {"entropy": mean_of(out.entropy, mask), "accuracy": mean_of(best, mask)}
    want, mask = ("logp", "lse", "entropy", "max_logit"), jnp.arange(30) % 2 == 0
    return fused_token_loss(of_tokens, hidden, weight, jnp.zeros(30, int), want=want, mask=mask)

text = jax.jit(jax.grad(loss, has_aux=True)).lower(jnp.ones((30, 4)), jnp.ones((5, 4))).as_text()
print(hashlib.sha256(text.encode()).hexdigest())
"""


def test_every_process_makes_the_same_program():
    # Else a program that one process compiled and kept is no use to the next, and those of a cluster would differ.
    programs = {
        subprocess.run(
            [sys.executable, "-c", _PROGRAM],
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in range(4)
    }
    assert len(programs) == 1


def test_leading_axes_are_tokens():
    problem = make_problem()
    grouped = jax.tree.map(
        lambda x: x.reshape(4, 6, *x.shape[1:]), (problem.hidden, problem.targets, problem.aux, problem.mask)
    )
    run = jax.jit(functools.partial(fused_token_loss, clipped, want=WANT))
    actual = run(grouped[0], problem.head, *grouped[1:3], GIVEN, mask=grouped[3])
    expected = run(problem.hidden, problem.head, problem.targets, problem.aux, GIVEN, mask=problem.mask)
    chex.assert_trees_all_close(actual, expected, rtol=1e-6)


def test_no_tokens_at_all_is_no_loss_and_no_gradient():
    problem = make_problem()
    (loss, metrics), gradient = differentiated(
        fused_token_loss,
        clipped,
        problem._replace(hidden=jnp.full((ROWS, WIDTH), jnp.nan)),
        jnp.zeros(ROWS, bool),
        want=WANT,
    )
    assert loss == 0.0
    assert metrics["accuracy"].weight == 0.0 and metrics["ratio"] == Max(-jnp.inf)
    chex.assert_trees_all_equal(gradient, jax.tree.map(jnp.zeros_like, gradient))


def test_the_gradient_is_scaled_by_what_comes_after():
    problem = make_problem()

    def loss(hidden, factor):
        return (
            factor * fused_token_loss(clipped, hidden, problem.head, problem.targets, problem.aux, GIVEN, want=WANT)[0]
        )

    gradient = jax.jit(jax.grad(loss))
    chex.assert_trees_all_close(gradient(problem.hidden, -3.0), -3.0 * gradient(problem.hidden, 1.0), rtol=1e-6)


def test_no_gradient_reaches_aux_given_reference_or_temperature():
    problem = make_problem()

    def loss(ref_hidden, aux, given, temperature):
        return fused_token_loss(
            with_kl,
            problem.hidden,
            problem.head,
            problem.targets,
            aux,
            given,
            want=("logp", "kl"),
            ref=(ref_hidden, problem.ref[1]),
            temperature=temperature,
        )[0]

    gradients = jax.jit(jax.grad(loss, (0, 1, 2, 3)))(problem.ref[0], problem.aux, GIVEN, 0.7)
    chex.assert_trees_all_equal(gradients, jax.tree.map(jnp.zeros_like, gradients))


def test_bfloat16_operands_are_summed_in_float32():
    problem = make_problem()
    narrow = problem._replace(
        hidden=problem.hidden.astype(jnp.bfloat16), head=Head(weight=problem.head.weight.astype(jnp.bfloat16))
    )
    wide = narrow._replace(
        hidden=narrow.hidden.astype(jnp.float32), head=Head(weight=narrow.head.weight.astype(jnp.float32))
    )
    (loss, _), (d_hidden, d_head) = differentiated(
        fused_token_loss, with_kl, narrow, want=("logp", "kl"), ref=problem.ref
    )
    (truth, _), (t_hidden, t_head) = differentiated(
        fused_token_loss, with_kl, wide, want=("logp", "kl"), ref=problem.ref
    )
    np.testing.assert_allclose(loss, truth, rtol=1e-5)
    chex.assert_type([d_hidden, d_head.weight], jnp.bfloat16)
    for actual, expected in ((d_hidden, t_hidden), (d_head.weight, t_head.weight)):
        error = jnp.linalg.norm(actual.astype(jnp.float32) - expected) / jnp.linalg.norm(expected)
        assert error < 5e-3


def test_without_a_gradient_the_value_is_the_same():
    problem = make_problem()
    run = jax.jit(functools.partial(fused_token_loss, clipped, want=WANT))
    value = run(problem.hidden, problem.head, problem.targets, problem.aux, GIVEN, mask=problem.mask)
    expected, _ = differentiated(fused_token_loss, clipped, problem, problem.mask, want=WANT)
    chex.assert_trees_all_close(value, expected, rtol=1e-6)


def test_three_products_instead_of_four():
    problem = make_problem()

    def products(function) -> int:
        def loss(hidden, head):
            return function(clipped, hidden, head, problem.targets, problem.aux, GIVEN, want=WANT)[0]

        return count_products(jax.make_jaxpr(jax.grad(loss, (0, 1)))(problem.hidden, problem.head).jaxpr)

    assert products(plain) == 4
    assert products(fused_token_loss) == 3


def count_products(jaxpr: Jaxpr) -> int:
    inner = [x for e in jaxpr.eqns for x in jax.tree.leaves(e.params, is_leaf=is_jaxpr) if is_jaxpr(x)]
    own = sum(equation.primitive.name == "dot_general" for equation in jaxpr.eqns)
    return own + sum(count_products(getattr(part, "jaxpr", part)) for part in inner)


def is_jaxpr(x: object) -> bool:
    return isinstance(x, Jaxpr | ClosedJaxpr)


def on_mesh(*sizes: int):
    return jax.set_mesh(jax.make_mesh(sizes, ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3))


def assert_same_on_a_mesh(
    problem: Problem, loss_fn, sizes: tuple[int, ...], mask: jax.Array | None = None, **options
) -> None:
    expected = differentiated(fused_token_loss, loss_fn, problem, mask, **options)
    with on_mesh(*sizes):
        actual = differentiated(fused_token_loss, loss_fn, problem, mask, **options)
    chex.assert_trees_all_close(jax.device_get(actual), jax.device_get(expected), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("sizes", [(2, 2, 2), (1, 1, 8), (8, 1, 1)], ids=str)
def test_on_a_mesh(sizes: tuple[int, int, int]):
    problem = make_problem(bias=True)
    assert_same_on_a_mesh(problem, clipped, sizes, problem.mask, want=WANT)


def test_a_kl_on_a_mesh():
    problem = make_problem(vocab_size=901)
    assert_same_on_a_mesh(problem, with_kl, (2, 2, 2), want=("logp", "kl"), ref=problem.ref)


def test_on_a_mesh_that_neither_rows_nor_words_divide_over():
    problem = make_problem()
    problem = problem._replace(head=Head(weight=problem.head.weight[:997]))  # 24 rows over 5, and a prime of words
    with jax.set_mesh(jax.make_mesh((5, 1, 1), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)):
        actual = differentiated(fused_token_loss, clipped, problem, want=WANT)
    expected = differentiated(fused_token_loss, clipped, problem, want=WANT)
    chex.assert_trees_all_close(jax.device_get(actual), jax.device_get(expected), rtol=1e-5, atol=2e-6)


def test_devices_that_visit_different_numbers_of_tiles_wait_for_each_other(monkeypatch: pytest.MonkeyPatch):
    # Four tiles of three rows a device; the mask leaves none of the first device's rows, and all of the second's.
    monkeypatch.setitem(tiles.TILES, "cpu", tiles.TileSize(3, 384))
    mask = jnp.arange(ROWS) >= ROWS // 2
    assert_same_on_a_mesh(make_problem(), clipped, (2, 1, 2), mask, want=WANT)


@pytest.mark.parametrize("sizes", [None, (2, 1, 2)], ids=["one", "mesh"])
@pytest.mark.parametrize("vocab", [400, 1500])
def test_judge_and_update_agree_to_the_last_digit(monkeypatch: pytest.MonkeyPatch, vocab: int, sizes):
    # Two programs: one that scores what was sampled, and one that learns from it. PPO's first ratio must be exactly 1.
    size = tiles.TileSize(256, 512, held=100 * 4 * vocab)  # rows of other heights in the one than in the other
    monkeypatch.setattr(tiles, "TILES", dict.fromkeys(tiles.TILES, size))
    rng = np.random.default_rng(vocab)
    hidden, weight = (jnp.asarray(rng.normal(size=(n, WIDTH)), jnp.float32) for n in (600, vocab))
    targets, mask = jnp.asarray(rng.integers(vocab, size=600)), jnp.asarray(rng.random(600) < 0.8)

    def loss_fn(out, mask, old, given):
        differ = Sum(jnp.sum(mask & (out.logp != old), dtype=jnp.float32))
        return jnp.sum(jnp.exp(out.logp - old) - 0.01 * out.entropy), {"differ": differ, "tokens": Sum(jnp.sum(mask))}

    @jax.jit
    def judge(hidden, weight, temperature):
        return linear_logprobs(hidden, weight, targets, mask=mask, temperature=temperature).logp

    @jax.jit
    @functools.partial(jax.value_and_grad, argnums=(0, 1), has_aux=True)
    def update(hidden, weight, temperature, old):
        options = {"want": ("logp", "entropy"), "mask": mask, "temperature": temperature}
        return fused_token_loss(loss_fn, hidden, weight, targets, old, **options)

    with contextlib.nullcontext() if sizes is None else on_mesh(*sizes):
        for temperature in (1.0, 0.6):
            old = judge(hidden, weight, temperature)
            (_, metrics), _ = update(hidden, weight, temperature, old)
            assert metrics["tokens"].value == mask.sum()
            assert metrics["differ"].value == 0


def test_logits_in_memory_are_bounded(monkeypatch: pytest.MonkeyPatch):
    problem = make_problem()
    monkeypatch.setitem(tiles.TILES, "cpu", tiles.TileSize(4096, 384, held=8 * 4 * VOCAB))

    def shapes() -> set[tuple[int, ...]]:
        run = functools.partial(fused_token_loss, clipped, want=WANT)
        jaxpr = jax.make_jaxpr(jax.grad(lambda h: run(h, problem.head, problem.targets, problem.aux, GIVEN)[0]))
        return set(shapes_of(jaxpr(problem.hidden).jaxpr))

    assert (3, 8, 384) in shapes()  # tiles of columns, rows, columns of a tile
    monkeypatch.setitem(tiles.TILES, "cpu", tiles.TileSize(4096, 384, held=24 * 4 * VOCAB))
    assert (3, 24, 384) in shapes()


def shapes_of(jaxpr: Jaxpr) -> list[tuple[int, ...]]:
    inner = [x for e in jaxpr.eqns for x in jax.tree.leaves(e.params, is_leaf=is_jaxpr) if is_jaxpr(x)]
    own = [variable.aval.shape for equation in jaxpr.eqns for variable in equation.outvars]
    return own + [shape for part in inner for shape in shapes_of(getattr(part, "jaxpr", part))]


def test_a_temperature_a_row_is_an_error():
    problem = make_problem()
    with pytest.raises(ValueError, match=r"temperature is float32\[\d+\]; expected a scalar"):
        linear_logprobs(problem.hidden, problem.head, problem.targets, temperature=jnp.ones(ROWS))


def test_aux_of_another_shape_is_an_error():
    problem = make_problem()
    aux = {"advantages": jnp.zeros(ROWS - 1)}
    with pytest.raises(ValueError, match=r"aux\['advantages'\] is \[\d+\]; expected \[\d+\] first"):
        fused_token_loss(clipped, problem.hidden, problem.head, problem.targets, aux, GIVEN, want=WANT)


def test_the_example_of_the_docstring_is_the_plain_loss():
    problem = make_problem()
    mask = jnp.arange(ROWS) % 3 > 0
    advantages = jnp.linspace(-1.0, 1.0, ROWS)

    def loss_fn(out, mask, advantages, tokens):
        loss = -jnp.sum(out.logp * advantages) / tokens
        return loss, {"entropy": mean_of(out.entropy, mask)}

    def of_hidden(hidden):
        arguments = (hidden, problem.head, problem.targets, advantages, mask.sum())
        return fused_token_loss(loss_fn, *arguments, want=("logp", "entropy"), mask=mask)

    def plain(hidden):
        out = linear_logprobs(hidden, problem.head, problem.targets, want=("logp", "entropy"), mask=mask)
        return -jnp.sum(out.logp * advantages) / mask.sum(), jnp.sum(out.entropy) / mask.sum()

    (loss, metrics), slope = jax.value_and_grad(of_hidden, has_aux=True)(problem.hidden)
    (expected, entropy), expected_slope = jax.value_and_grad(plain, has_aux=True)(problem.hidden)
    np.testing.assert_allclose([loss, metrics["entropy"].value], [expected, entropy], rtol=1e-5)
    np.testing.assert_allclose(slope, expected_slope, rtol=1e-4, atol=1e-6)


def test_a_loss_of_the_library_needs_its_denominator():
    problem = make_problem()
    mask = problem.mask

    def by(**options):
        def loss_fn(out, mask, aux, given):
            return losses.lm_loss(out.logp, mask, **options)

        return fused_token_loss(loss_fn, problem.hidden, problem.head, problem.targets, mask=mask)[0]

    logp = linear_logprobs(problem.hidden, problem.head, problem.targets, mask=mask).logp
    np.testing.assert_allclose(by(denom=mask.sum()), losses.lm_loss(logp[None], mask[None])[0], rtol=1e-6)
    with pytest.raises(ValueError, match="a mean needs the count of all tokens"):
        by()
    losses.lm_loss(logp[None], mask[None])  # outside it may count by itself again


def test_a_loss_that_averages_within_answers_is_refused():
    problem = make_problem()

    def loss_fn(out, mask, aux, given):
        average = functools.partial(losses.sequence_mean, denom=2.0)
        return losses.grpo_loss(out.logp, aux["old"], aux["advantages"], mask, average=average)

    with pytest.raises(ValueError, match="a sum for each row needs whole rows"):
        fused_token_loss(loss_fn, problem.hidden, problem.head, problem.targets, problem.aux)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (lambda logp: jnp.sum(logp), "it returned "),
        (lambda logp: (logp, {}), r"its loss is float32\[1, \d+\]"),
        (lambda logp: (jnp.sum(logp).astype(jnp.bfloat16), {}), "its loss is bfloat16"),
        (lambda logp: (jnp.sum(logp), {"a": jnp.mean(logp)}), r"its metrics \['a'\] are none"),
    ],
)
def test_a_loss_that_returns_anything_else_is_an_error(returned, message: str):
    problem = make_problem()
    with pytest.raises(ValueError, match=message):
        fused_token_loss(
            lambda out, mask, aux, given: returned(out.logp), problem.hidden, problem.head, problem.targets
        )
