"""`linear_logprobs` with a reference: both implementations against float64 numpy, and what callers rely on."""

import functools
import math
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxrlhf.kernels import linear_logprobs
from jaxrlhf.types import Head

ROWS, WIDTH, REF_WIDTH = 19, 16, 6

implementations = pytest.mark.parametrize("implementation", ["reference", "chunked"])

pytestmark = pytest.mark.usefixtures("small_tiles")


class Case(NamedTuple):
    """Two heads of one vocabulary, and a temperature."""

    vocab: int
    vocab_size: int | None = None
    bias: bool = False
    softcap: float | None = None
    scale: float = 1.0
    temperature: float = 1.0
    rows: int = ROWS

    @property
    def words(self) -> int:
        return self.vocab_size or self.vocab


CASES = {
    "one_word": Case(1),
    "five_words": Case(5, bias=True, softcap=3.0),
    "one_tile_and_one_column": Case(385, temperature=0.6),
    "padded_by_whole_tiles": Case(1000, vocab_size=130, temperature=0.7),
    "one_row": Case(1000, rows=1, bias=True, scale=1.5),
    "everything": Case(4097, vocab_size=4001, bias=True, softcap=5.0, scale=0.7, temperature=1.3),
}


class Problem(NamedTuple):
    """What a case is made of; the reference has another width, and no softcap or scale."""

    hidden: jax.Array
    weight: jax.Array
    bias: jax.Array | None
    ref_hidden: jax.Array
    ref_weight: jax.Array
    targets: jax.Array
    cotangents: jax.Array  # [2, N]: of kl, logp


class Oracle(NamedTuple):
    """The fields in float64, and the gradients of the cotangents' weighted sum of kl and logp."""

    kl: np.ndarray
    ref_logp: np.ndarray
    logp: np.ndarray
    d_hidden: np.ndarray
    d_weight: np.ndarray
    d_bias: np.ndarray


def make_problem(case: Case, dtype=jnp.float32) -> Problem:
    rng = np.random.default_rng(case.vocab)
    weight, ref_weight = (rng.normal(size=(case.vocab, d)) / math.sqrt(d) for d in (WIDTH, REF_WIDTH))
    weight[case.words :], ref_weight[case.words :] = 1e4, -1e4  # padded rows may hold anything finite
    return Problem(
        hidden=jnp.asarray(rng.normal(size=(case.rows, WIDTH)), dtype),
        weight=jnp.asarray(weight, dtype),
        bias=jnp.asarray(rng.normal(size=case.vocab), jnp.float32) if case.bias else None,
        ref_hidden=jnp.asarray(rng.normal(size=(case.rows, REF_WIDTH)), dtype),
        ref_weight=jnp.asarray(ref_weight, dtype),
        targets=jnp.asarray(rng.integers(case.words, size=case.rows)),
        cotangents=jnp.asarray(rng.normal(size=(2, case.rows)), jnp.float32),
    )


def float64(array: jax.Array) -> np.ndarray:
    return np.asarray(array.astype(jnp.float32), np.float64)


def log_softmax64(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def oracle(case: Case, problem: Problem) -> Oracle:
    hidden, weight = float64(problem.hidden), float64(problem.weight)[: case.words]
    bias = np.zeros(case.words) if problem.bias is None else float64(problem.bias)[: case.words]
    logits, slope = case.scale * hidden @ weight.T + bias, 1.0
    if case.softcap is not None:
        tanh = np.tanh(logits / case.softcap)
        logits, slope = case.softcap * tanh, 1.0 - tanh**2
    logp = log_softmax64(logits / case.temperature)
    ref_logits = float64(problem.ref_hidden) @ float64(problem.ref_weight)[: case.words].T
    ref_logp = log_softmax64(ref_logits / case.temperature)
    kl = (np.exp(logp) * (logp - ref_logp)).sum(-1)

    rows, (g_kl, g_logp) = np.arange(case.rows), float64(problem.cotangents)[:, :, None]
    onehot = np.arange(case.words) == np.asarray(problem.targets)[:, None]
    d_logits = g_kl * np.exp(logp) * (logp - ref_logp - kl[:, None]) + g_logp * (onehot - np.exp(logp))
    d_raw = d_logits * slope / case.temperature
    padding = case.vocab - case.words
    return Oracle(
        kl,
        ref_logp[rows, problem.targets],
        logp[rows, problem.targets],
        case.scale * d_raw @ weight,
        np.pad(case.scale * d_raw.T @ hidden, [(0, padding), (0, 0)]),
        np.pad(d_raw.sum(0), (0, padding)),
    )


@functools.cache
def computed(name: str, dtype: str, implementation: str):
    """Fields, gradients by hidden, weight and bias, and the oracle: one compilation for the tests that read them."""
    case = CASES[name]
    problem = make_problem(case, dtype)

    def total(hidden, weight, bias):
        head = Head(weight=weight, bias=bias, softcap=case.softcap, scale=case.scale, vocab_size=case.vocab_size)
        ref = (problem.ref_hidden, Head(weight=problem.ref_weight, vocab_size=case.vocab_size))
        out = linear_logprobs(
            hidden,
            head,
            problem.targets,
            want=("kl", "ref_logp", "logp"),
            ref=ref,
            temperature=case.temperature,
            implementation=implementation,
        )
        return jnp.sum(jnp.stack([out.kl, out.logp]) * problem.cotangents), out

    arguments = (0, 1, 2) if case.bias else (0, 1)
    gradients, out = jax.jit(jax.grad(total, arguments, has_aux=True))(problem.hidden, problem.weight, problem.bias)
    return out, gradients, oracle(case, problem)


def relative_error(actual: jax.Array, expected: np.ndarray) -> float:
    """Distance in units of the expected array's Frobenius norm; absolute where that is below 1e-3."""
    return float(np.linalg.norm(float64(actual) - expected) / max(np.linalg.norm(expected), 1e-3))


def total_kl(implementation: str, **options):
    """A function of hidden, weight, reference's hidden and weight that ends in the sum of KLs, and the KLs."""

    def total(hidden, weight, ref_hidden, ref_weight):
        targets = jnp.zeros(hidden.shape[:-1], int)
        out = linear_logprobs(
            hidden,
            weight,
            targets,
            want=("kl",),
            ref=(ref_hidden, ref_weight),
            implementation=implementation,
            **options,
        )
        return jnp.sum(out.kl), out.kl

    return total


def two_models(vocab: int = 1000, rows: int = ROWS) -> tuple[jax.Array, ...]:
    problem = make_problem(Case(vocab, rows=rows))
    return problem.hidden, problem.weight, problem.ref_hidden, problem.ref_weight


@implementations
@pytest.mark.parametrize("name", CASES)
def test_float32_matches_float64(name: str, implementation: str):
    out, gradients, expected = computed(name, "float32", implementation)
    for field in ("kl", "ref_logp", "logp"):
        actual = getattr(out, field)
        assert actual.dtype == jnp.float32
        np.testing.assert_allclose(actual, getattr(expected, field), rtol=0, atol=2e-6, err_msg=field)
    for gradient, truth in zip(gradients, expected[3:], strict=False):
        assert relative_error(gradient, truth) <= 2e-6


@implementations
@pytest.mark.parametrize("name", ["five_words", "everything"])
def test_bfloat16_is_summed_in_float32(name: str, implementation: str):
    out, gradients, expected = computed(name, "bfloat16", implementation)
    np.testing.assert_allclose(out.kl, expected.kl, rtol=0, atol=2e-6)
    np.testing.assert_allclose(out.ref_logp, expected.ref_logp, rtol=0, atol=2e-6)
    chex.assert_type(gradients[:2], jnp.bfloat16)
    for gradient, truth in zip(gradients, expected[3:], strict=False):
        assert relative_error(gradient, truth) <= 5e-3


@implementations
def test_gradient_matches_central_differences(implementation: str):
    case = Case(5, vocab_size=4, bias=True, softcap=3.0, scale=0.7, temperature=1.3, rows=2)
    problem = make_problem(case)._replace(cotangents=jnp.asarray([[1.0, 1.0], [0.0, 0.0]]))

    def total(hidden):
        head = Head(weight=problem.weight, bias=problem.bias, softcap=3.0, scale=0.7, vocab_size=4)
        ref = (problem.ref_hidden, Head(weight=problem.ref_weight, vocab_size=4))
        out = linear_logprobs(
            hidden, head, problem.targets, want=("kl",), ref=ref, temperature=1.3, implementation=implementation
        )
        return jnp.sum(out.kl)

    numeric, step = np.zeros(problem.hidden.shape), 2.0**-9
    for index in np.ndindex(*problem.hidden.shape):
        up, down = problem.hidden.at[index].add(step), problem.hidden.at[index].add(-step)
        rise = oracle(case, problem._replace(hidden=up)).kl.sum() - oracle(case, problem._replace(hidden=down)).kl.sum()
        numeric[index] = rise / (float(up[index]) - float(down[index]))
    np.testing.assert_allclose(jax.jit(jax.grad(total))(problem.hidden), numeric, atol=1e-5)


@implementations
def test_kl_is_the_mean_of_the_k1_estimate_over_the_policy(implementation: str):
    # k1 = logp - ref_logp of a word that the policy drew; here every word, with its probability.
    vocab = 11
    hidden, weight, ref_hidden, ref_weight = two_models(vocab, rows=1)
    every = jnp.arange(vocab)
    out = jax.jit(
        lambda h, r: linear_logprobs(
            jnp.broadcast_to(h, (vocab, WIDTH)),
            weight,
            every,
            want=("kl", "ref_logp", "logp"),
            ref=(jnp.broadcast_to(r, (vocab, REF_WIDTH)), ref_weight),
            temperature=0.8,
            implementation=implementation,
        )
    )(hidden, ref_hidden)
    mean = jnp.sum(jnp.exp(out.logp) * (out.logp - out.ref_logp))
    np.testing.assert_allclose(out.kl, jnp.broadcast_to(mean, (vocab,)), rtol=2e-6)
    assert mean > 0.1


@implementations
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_reference_itself_has_no_kl_and_no_gradient(dtype: str, implementation: str):
    problem = make_problem(Case(1000, bias=True), dtype)

    def total(hidden, weight, bias, ref_hidden, ref_weight, ref_bias):
        head, ref_head = (
            Head(weight=w, bias=b, softcap=5.0, scale=0.7, vocab_size=980)
            for w, b in ((weight, bias), (ref_weight, ref_bias))
        )
        out = linear_logprobs(
            hidden,
            head,
            problem.targets,
            want=("kl", "logp", "ref_logp"),
            ref=(ref_hidden, ref_head),
            temperature=1.3,
            implementation=implementation,
        )
        return jnp.sum(out.kl), out

    model = (problem.hidden, problem.weight, problem.bias)
    gradients, out = jax.jit(jax.grad(total, (0, 1, 2), has_aux=True))(*model, *jax.tree.map(jnp.copy, model))
    zeros = jax.tree.map(jnp.zeros_like, (out.kl, gradients))
    # Both models go through one loop body, and round alike; two products of whole matrices may not.
    chex.assert_trees_all_close((out.kl, gradients), zeros, rtol=0, atol=0 if implementation == "chunked" else 1e-6)
    assert jnp.all(out.kl < 1e-12)
    np.testing.assert_allclose(out.logp, out.ref_logp, rtol=0, atol=0 if implementation == "chunked" else 1e-6)


@implementations
def test_a_constant_in_all_logits_of_one_model_changes_nothing(implementation: str):
    def total(hidden, weight, ref_weight, bias, ref_bias):
        ref = (jax.lax.stop_gradient(hidden), Head(weight=ref_weight, bias=ref_bias))
        targets = jnp.zeros(ROWS, int)
        out = linear_logprobs(
            hidden, Head(weight=weight, bias=bias), targets, want=("kl",), ref=ref, implementation=implementation
        )
        return jnp.sum(out.kl), out.kl

    # Logits are multiples of 2^-12 below 2^6, so that adding 1024 does not round them: only the sums could lose digits.
    run = jax.jit(jax.grad(total, has_aux=True))
    rng = np.random.default_rng(0)
    hidden, weight, noise = (rng.integers(-8, 9, size=(n, WIDTH)) / 8 for n in (ROWS, 1000, 1000))
    for distance in (2.0**-6, 2.0**-3, 1.0):
        ref_weight = weight + distance * noise
        logp, ref_logp = log_softmax64(hidden @ weight.T), log_softmax64(hidden @ ref_weight.T)
        expected = (np.exp(logp) * (logp - ref_logp)).sum(-1)
        d_hidden = (np.exp(logp) * (logp - ref_logp - expected[:, None])) @ weight
        arrays = [jnp.asarray(x, jnp.float32) for x in (hidden, weight, ref_weight)]
        for offsets in ((0.0, 0.0), (0.0, 1024.0), (1024.0, 0.0), (-1024.0, 1024.0)):
            gradient, kl = run(*arrays, *(jnp.full(1000, x) for x in offsets))
            np.testing.assert_allclose(kl, expected, rtol=1e-6, atol=1e-6 * distance, err_msg=str(offsets))
            np.testing.assert_allclose(gradient, d_hidden, rtol=0, atol=1e-6, err_msg=str(offsets))


@implementations
def test_kl_of_close_models_is_not_lost_in_rounding(implementation: str):
    # KLs of 1e-7, where the plain sum of p (log p - log q) is off by 1e-6 and negative in a third of the rows.
    rng = np.random.default_rng(0)
    hidden, weight = (jnp.asarray(rng.normal(size=(n, WIDTH)), jnp.float32) for n in (64, 1000))
    ref_hidden = hidden * (1 + jnp.float32(2.0**-12))
    logp, ref_logp = (log_softmax64(float64(h) @ float64(weight).T) for h in (hidden, ref_hidden))
    expected = (np.exp(logp) * (logp - ref_logp)).sum(-1)
    _, kl = jax.jit(total_kl(implementation))(hidden, weight, ref_hidden, weight)
    assert np.median(expected) < 1e-6
    np.testing.assert_allclose(kl, expected, rtol=0, atol=1e-8)
    assert jnp.all(kl >= 0)


@implementations
def test_peaked_models_that_disagree(implementation: str):
    # All mass on word 500 and on word 20 respectively, 100 nats above the others.
    weight, ref_weight = jnp.zeros((1000, 1)).at[500, 0].set(100.0), jnp.zeros((1000, 1)).at[20, 0].set(100.0)
    hidden = jnp.ones((1, 1))
    run = jax.jit(jax.value_and_grad(total_kl(implementation), has_aux=True))
    (kl, _), gradient = run(hidden, weight, hidden, ref_weight)
    np.testing.assert_allclose(kl, 100.0, rtol=1e-6)
    assert jnp.all(jnp.isfinite(gradient))


@implementations
def test_words_ruled_out_by_both_models_add_nothing(implementation: str):
    problem = make_problem(Case(1000, bias=True))
    kept = jnp.arange(1000) >= 400  # the first block, and some of the second, is ruled out
    ref = (problem.ref_hidden, problem.ref_weight)

    def total(hidden, weight, bias, ref_weight, ref_bias):
        out = linear_logprobs(
            hidden,
            Head(weight=weight, bias=bias),
            jnp.zeros(ROWS, int),
            want=("kl",),
            ref=(problem.ref_hidden, Head(weight=ref_weight, bias=ref_bias)),
            implementation=implementation,
        )
        return jnp.sum(out.kl), out.kl

    run = jax.jit(jax.grad(total, (0, 1, 2), has_aux=True))
    mask = jnp.where(kept, 0.0, -jnp.inf)
    (d_hidden, d_weight, d_bias), kl = run(problem.hidden, problem.weight, problem.bias + mask, ref[1], mask)
    (kept_d_hidden, kept_d_weight, kept_d_bias), kept_kl = run(
        problem.hidden, problem.weight[400:], problem.bias[400:], ref[1][400:], jnp.zeros(600)
    )
    chex.assert_trees_all_close(kl, kept_kl, rtol=1e-5)
    chex.assert_trees_all_close(
        (d_hidden, d_weight[400:], d_bias[400:]), (kept_d_hidden, kept_d_weight, kept_d_bias), rtol=1e-5, atol=1e-6
    )
    assert not jnp.any(d_weight[:400]) and not jnp.any(d_bias[:400])


@implementations
def test_no_gradient_reaches_the_reference(implementation: str):
    hidden, weight, ref_hidden, ref_weight = two_models(40)
    targets = jnp.zeros(ROWS, int)

    def total(ref_hidden, ref_weight):
        out = linear_logprobs(
            hidden,
            weight,
            targets,
            want=("kl", "ref_logp"),
            ref=(ref_hidden, ref_weight),
            implementation=implementation,
        )
        return jnp.sum(out.kl + out.ref_logp)

    gradients = jax.jit(jax.grad(total, (0, 1)))(ref_hidden, ref_weight)
    chex.assert_trees_all_equal(gradients, jax.tree.map(jnp.zeros_like, gradients))


@pytest.mark.parametrize("read", ["kl", "ref_logp"])
def test_gradient_reaches_the_reference_on_request(read: str):
    hidden, weight, ref_hidden, ref_weight = two_models()
    targets = jnp.arange(ROWS)

    def total(implementation, *arrays):
        hidden, weight, ref_hidden, ref_weight = arrays
        out = linear_logprobs(
            hidden,
            weight,
            targets,
            want=("logp", read),
            ref=(ref_hidden, Head(weight=ref_weight, softcap=4.0)),
            ref_grad=True,
            temperature=0.7,
            implementation=implementation,
        )
        return jnp.sum(getattr(out, read) * jnp.arange(ROWS))

    def gradients(implementation: str):
        run = jax.jit(jax.grad(functools.partial(total, implementation), (0, 1, 2, 3)))
        return run(hidden, weight, ref_hidden, ref_weight)

    expected = gradients("reference")
    assert all(jnp.any(gradient) for gradient in expected[2:])
    chex.assert_trees_all_close(gradients("chunked"), expected, rtol=1e-4, atol=2e-5)


def test_a_gradient_to_a_reference_that_is_not_there_is_an_error():
    with pytest.raises(ValueError, match="ref_grad=True needs a reference"):
        linear_logprobs(jnp.ones((2, 3)), jnp.ones((5, 3)), jnp.zeros(2, int), ref_grad=True)


@implementations
def test_masked_rows_may_hold_nan_in_either_model(implementation: str):
    hidden, weight, ref_hidden, ref_weight = two_models()
    mask = jnp.arange(ROWS) % 2 == 0
    dirty, ref_dirty = (jnp.where(mask[:, None], x, jnp.nan) for x in (hidden, ref_hidden))
    run = jax.jit(jax.grad(total_kl(implementation, mask=mask), (0, 1), has_aux=True))
    (d_hidden, d_weight), kl = run(dirty, weight, ref_dirty, ref_weight)
    run = jax.jit(jax.grad(total_kl(implementation), (0, 1), has_aux=True))
    (kept_d_hidden, kept_d_weight), kept_kl = run(hidden[::2], weight, ref_hidden[::2], ref_weight)
    chex.assert_trees_all_close(
        (kl[::2], d_hidden[::2], d_weight), (kept_kl, kept_d_hidden, kept_d_weight), rtol=1e-5, atol=1e-6
    )
    assert not jnp.any(kl[1::2]) and not jnp.any(d_hidden[1::2])


@implementations
def test_leading_axes_vmap_and_checkpoint_agree_with_rows(implementation: str):
    hidden, weight, ref_hidden, ref_weight = two_models(rows=6)
    run = total_kl(implementation)
    (_, kl), (d_hidden, d_weight) = jax.jit(jax.value_and_grad(run, (0, 1), has_aux=True))(
        hidden, weight, ref_hidden, ref_weight
    )
    expected = (kl.reshape(2, 3), d_hidden.reshape(2, 3, WIDTH), d_weight)
    mapped = jax.vmap(lambda *arrays: run(*arrays)[1], in_axes=(0, None, 0, None))
    for function in (run, jax.checkpoint(run), lambda *arrays: (jnp.sum(mapped(*arrays)), mapped(*arrays))):
        (_, kl), gradients = jax.jit(jax.value_and_grad(function, (0, 1), has_aux=True))(
            hidden.reshape(2, 3, -1), weight, ref_hidden.reshape(2, 3, -1), ref_weight
        )
        chex.assert_trees_all_close((kl, *gradients), expected, rtol=1e-5, atol=1e-6)


@implementations
def test_fields_not_wanted_are_none(implementation: str):
    hidden, weight, ref_hidden, ref_weight = two_models(40)
    for want in (("kl",), ("ref_logp",), ("entropy", "ref_logp")):
        run = functools.partial(linear_logprobs, want=want, implementation=implementation)
        out = jax.eval_shape(run, hidden, weight, jnp.zeros(ROWS, int), ref=(ref_hidden, ref_weight))
        assert {name for name, field in out._asdict().items() if field is not None} == set(want)


@pytest.mark.parametrize(
    ("want", "with_ref", "message"),
    [
        (("logp", "kl"), False, r"reads \['kl'\] of a reference; give ref="),
        (("ref_logp",), False, r"reads \['ref_logp'\]"),
        (("logp",), True, r"ref is given, but want=\('logp',\) reads nothing of it; want one of \('kl', 'ref_logp'\)"),
    ],
)
def test_a_reference_is_given_exactly_where_it_is_read(want: tuple[str, ...], with_ref: bool, message: str):
    ref = (jnp.ones((2, 4)), jnp.ones((5, 4))) if with_ref else None
    with pytest.raises(ValueError, match=message):
        linear_logprobs(jnp.ones((2, 3)), jnp.ones((5, 3)), jnp.zeros(2, int), want=want, ref=ref)


@pytest.mark.parametrize(
    ("rows", "vocab_size", "message"),
    [(6, None, "has 6 words in 6 rows, the policy's 5 in 5"), (5, 4, "has 4 words in 5 rows, the policy's 5 in 5")],
)
def test_another_vocabulary_is_an_error(rows: int, vocab_size: int | None, message: str):
    ref = (jnp.ones((2, 4)), Head(weight=jnp.ones((rows, 4)), vocab_size=vocab_size))
    with pytest.raises(ValueError, match=message):
        linear_logprobs(jnp.ones((2, 3)), jnp.ones((5, 3)), jnp.zeros(2, int), want=("kl",), ref=ref)


@pytest.mark.parametrize(("rows", "width"), [(3, 4), (2, 3)])
def test_shapes_of_the_reference_are_checked(rows: int, width: int):
    ref = (jnp.ones((rows, width)), jnp.ones((5, 4)))
    with pytest.raises(ValueError, match="`ref` (are|is) float32"):
        linear_logprobs(jnp.ones((2, 3)), jnp.ones((5, 3)), jnp.zeros(2, int), want=("kl",), ref=ref)


def test_sharded_equals_unsharded():
    mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    arrays = two_models(rows=16)
    rows, head = P(("data", "fsdp"), None), P("tensor", "fsdp")
    placed = [
        jax.device_put(x, NamedSharding(mesh, spec)) for x, spec in zip(arrays, (rows, head, rows, head), strict=True)
    ]
    run = jax.jit(jax.value_and_grad(total_kl("chunked"), (0, 1), has_aux=True))
    actual, expected = run(*placed), run(*arrays)
    assert len(actual[0][1].sharding.device_set) == 8
    chex.assert_trees_all_close(jax.device_get(actual), jax.device_get(expected), rtol=1e-5, atol=1e-6)
