"""Both implementations against float64 numpy, and what callers rely on whichever one runs."""

import functools
import math
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxrlhf.kernels import linear_logprobs
from jaxrlhf.types import Head, LogprobOut

ALL = ("logp", "lse", "entropy", "max_logit")
ROWS, WIDTH = 19, 16

BFLOAT16_CASES = ("five_words", "padded", "everything")

implementations = pytest.mark.parametrize("implementation", ["reference", "chunked"])

pytestmark = pytest.mark.usefixtures("small_tiles")


class Case(NamedTuple):
    """A head, a temperature and a number of rows."""

    vocab: int
    vocab_size: int | None = None
    bias: bool = False
    softcap: float | None = None
    scale: float = 1.0
    temperature: float | None = None
    rows: int = ROWS


CASES = {
    "one_word": Case(1),
    "five_words": Case(5, bias=True, softcap=3.0),
    "one_tile_and_one_column": Case(385, temperature=0.6),
    "ragged": Case(513, softcap=2.0, scale=2.0, temperature=1.7),
    "padded": Case(1000, vocab_size=980, bias=True),
    "padded_by_whole_tiles": Case(1000, vocab_size=130, temperature=0.7),
    "one_row": Case(1000, rows=1, bias=True, scale=1.5),
    "gpt2": Case(50257, rows=3),
    "everything": Case(4097, vocab_size=4001, bias=True, softcap=5.0, scale=0.7, temperature=1.3),
}


class Problem(NamedTuple):
    """What a case is made of: arrays of the dtype under test, and one cotangent for each differentiable field."""

    hidden: jax.Array
    weight: jax.Array
    bias: jax.Array | None
    targets: jax.Array
    cotangents: np.ndarray  # [3, N]: of logp, lse, entropy


class Oracle(NamedTuple):
    """The same in float64: the fields, and the gradients of the cotangents' weighted sum."""

    logp: np.ndarray
    lse: np.ndarray
    entropy: np.ndarray
    max_logit: np.ndarray
    d_hidden: np.ndarray
    d_weight: np.ndarray
    d_bias: np.ndarray


def make_problem(case: Case, dtype=jnp.float32) -> Problem:
    rng = np.random.default_rng(case.vocab)
    weight = rng.normal(size=(case.vocab, WIDTH)) / math.sqrt(WIDTH)
    weight[case.vocab_size or case.vocab :] = 1e4  # padded rows may hold anything finite
    return Problem(
        hidden=jnp.asarray(rng.normal(size=(case.rows, WIDTH)), dtype),
        weight=jnp.asarray(weight, dtype),
        bias=jnp.asarray(rng.normal(size=case.vocab), jnp.float32) if case.bias else None,
        targets=jnp.asarray(rng.integers(case.vocab_size or case.vocab, size=case.rows)),
        cotangents=rng.normal(size=(3, case.rows)),
    )


def make_head(case: Case, weight: jax.Array, bias: jax.Array | None) -> Head:
    return Head(weight=weight, bias=bias, softcap=case.softcap, scale=case.scale, vocab_size=case.vocab_size)


def oracle(case: Case, problem: Problem) -> Oracle:
    hidden, weight = (np.asarray(x.astype(jnp.float32), np.float64) for x in (problem.hidden, problem.weight))
    bias = np.zeros(case.vocab) if problem.bias is None else np.asarray(problem.bias, np.float64)
    temperature = case.temperature or 1.0
    logits, slope = case.scale * hidden @ weight.T + bias, 1.0
    if case.softcap is not None:
        tanh = np.tanh(logits / case.softcap)
        logits, slope = case.softcap * tanh, 1.0 - tanh**2
    logits = logits / temperature
    logits[:, case.vocab_size or case.vocab :] = -np.inf

    max_logit = logits.max(-1)
    p = np.exp(logits - max_logit[:, None])
    lse = max_logit + np.log(p.sum(-1))
    p = p / p.sum(-1, keepdims=True)
    logprobs = np.log(p, where=p > 0, out=np.zeros_like(p))
    entropy = -(p * logprobs).sum(-1)
    logp = logits[np.arange(case.rows), problem.targets] - lse

    g_logp, g_lse, g_entropy = problem.cotangents[:, :, None]
    onehot = np.arange(case.vocab) == np.asarray(problem.targets)[:, None]
    d_logits = g_logp * (onehot - p) + g_lse * p - g_entropy * p * (logprobs + entropy[:, None])
    d_raw = d_logits * slope / temperature
    return Oracle(
        logp, lse, entropy, max_logit, case.scale * d_raw @ weight, case.scale * d_raw.T @ hidden, d_raw.sum(0)
    )


def weighted_sum(case: Case, problem: Problem, hidden, weight, bias, implementation):
    """The scalar that `Oracle` holds the gradient of, and the fields."""
    head = make_head(case, weight, bias)
    out = linear_logprobs(
        hidden, head, problem.targets, want=ALL, temperature=case.temperature, implementation=implementation
    )
    fields = jnp.stack([out.logp, out.lse, out.entropy])
    return jnp.sum(fields * jnp.asarray(problem.cotangents, jnp.float32)), out


@functools.cache
def computed(name: str, dtype: str, implementation: str) -> tuple[LogprobOut, tuple[jax.Array, ...], Oracle]:
    """Fields, gradients by hidden, weight and bias, and the oracle: one compilation for the tests that read them."""
    case = CASES[name]
    problem = make_problem(case, dtype)
    arguments = (0, 1, 2) if case.bias else (0, 1)
    run = functools.partial(weighted_sum, case, problem, implementation=implementation)
    gradients, out = gradients_and_fields(run, arguments)(problem.hidden, problem.weight, problem.bias)
    return out, gradients, oracle(case, problem)


def relative_error(actual: jax.Array, expected: np.ndarray) -> float:
    """Distance in units of the expected array's Frobenius norm; absolute where that is below 1e-3."""
    difference = np.asarray(actual.astype(jnp.float32), np.float64) - expected
    return float(np.linalg.norm(difference) / max(np.linalg.norm(expected), 1e-3))


def random_problem(vocab: int = 1000) -> Problem:
    return make_problem(Case(vocab))


def compiled(**options):
    """`linear_logprobs` of arrays alone, under jit."""
    return jax.jit(functools.partial(linear_logprobs, **options))


def gradients_and_fields(function, argnums: int | tuple[int, ...] = 0):
    """The compiled gradient of a function that returns a scalar and the fields."""
    return jax.jit(jax.grad(function, argnums, has_aux=True))


def test_oracle_gradients_match_central_differences():
    case = Case(5, vocab_size=4, bias=True, softcap=3.0, scale=0.7, temperature=1.3, rows=2)
    problem = make_problem(case)
    expected = oracle(case, problem)

    def value(**changed) -> float:
        fields = oracle(case, problem._replace(**changed))
        return float((problem.cotangents * np.stack([fields.logp, fields.lse, fields.entropy])).sum())

    step = 2.0**-9
    for name, analytic in (("hidden", expected.d_hidden), ("weight", expected.d_weight), ("bias", expected.d_bias)):
        array = np.asarray(getattr(problem, name))
        numeric = np.zeros(array.shape)
        for index in np.ndindex(*array.shape):
            if array[index] > 1e3:  # a padded row
                continue
            bump = np.zeros_like(array)
            bump[index] = step
            up, down = array + bump, array - bump
            rise = value(**{name: jnp.asarray(up)}) - value(**{name: jnp.asarray(down)})
            numeric[index] = rise / (float(up[index]) - float(down[index]))
        np.testing.assert_allclose(analytic, numeric, atol=2e-5)


@implementations
@pytest.mark.parametrize(
    ("name", "dtype"), [(name, "float32") for name in CASES] + [(name, "bfloat16") for name in BFLOAT16_CASES]
)
def test_values_match_float64(name: str, dtype: str, implementation: str):
    out, _, expected = computed(name, dtype, implementation)
    for field in ALL:
        actual = getattr(out, field)
        assert actual.dtype == jnp.float32
        np.testing.assert_allclose(actual, getattr(expected, field), rtol=0, atol=5e-6, err_msg=field)


@implementations
@pytest.mark.parametrize("name", CASES)
def test_float32_gradients_match_float64(name: str, implementation: str):
    _, gradients, expected = computed(name, "float32", implementation)
    for gradient, truth in zip(gradients, [expected.d_hidden, expected.d_weight, expected.d_bias], strict=False):
        assert relative_error(gradient, truth) <= 2e-6


@implementations
@pytest.mark.parametrize("name", BFLOAT16_CASES)
def test_bfloat16_gradients_match_float64_to_bfloat16(name: str, implementation: str):
    _, gradients, expected = computed(name, "bfloat16", implementation)
    chex.assert_type(gradients[:2], jnp.bfloat16)
    for gradient, truth in zip(gradients, [expected.d_hidden, expected.d_weight, expected.d_bias], strict=False):
        assert relative_error(gradient, truth) <= 5e-3


@implementations
@pytest.mark.parametrize("name", CASES)
def test_values_lie_in_their_ranges(name: str, implementation: str):
    out, _, _ = computed(name, "float32", implementation)
    size = CASES[name].vocab_size or CASES[name].vocab
    assert jnp.all(out.logp <= 1e-6)
    assert jnp.all(out.entropy >= 0) and jnp.all(out.entropy <= math.log(size) + 1e-6)
    assert jnp.all(out.max_logit <= out.lse)


@implementations
def test_padded_rows_of_the_head_get_zero_gradient(implementation: str):
    _, (_, d_weight, d_bias), _ = computed("padded", "float32", implementation)
    assert jnp.any(d_weight[979] != 0)
    assert not jnp.any(d_weight[980:]) and not jnp.any(d_bias[980:])


@implementations
def test_a_padded_row_of_the_head_has_probability_zero(implementation: str):
    problem = random_problem()
    head = Head(weight=problem.weight, vocab_size=980)
    out = compiled(implementation=implementation)(problem.hidden, head, (problem.targets % 980).at[0].set(990))
    assert out.logp[0] == -jnp.inf
    assert jnp.all(jnp.isfinite(out.logp[1:]))


@implementations
def test_probabilities_of_all_targets_sum_to_one(implementation: str):
    vocab = 1000
    problem = random_problem(vocab)
    hidden = jnp.broadcast_to(problem.hidden[0], (vocab, WIDTH))
    out = compiled(temperature=0.6, implementation=implementation)(hidden, problem.weight, jnp.arange(vocab))
    np.testing.assert_allclose(jnp.sum(jnp.exp(out.logp)), 1.0, atol=2e-6)


@implementations
def test_logits_of_plus_and_minus_80(implementation: str):
    weight = jnp.asarray(np.resize([1.0, -1.0, 0.0], (1000, 1)), jnp.float32)  # 334 words at +80, 333 at -80 and at 0
    hidden = jnp.full((3, 1), 80.0)
    out = compiled(want=ALL, implementation=implementation)(hidden, weight, jnp.asarray([0, 1, 2]))
    spread = math.log(334)  # the words at +80 share all the mass
    np.testing.assert_allclose(out.logp, [-spread, -160 - spread, -80 - spread], rtol=2e-7)
    np.testing.assert_allclose(out.lse, np.full(3, 80 + spread), rtol=2e-7)
    np.testing.assert_allclose(out.entropy, np.full(3, spread), rtol=1e-6)
    assert jnp.all(out.max_logit == 80)


@implementations
def test_a_peaked_row_is_certain_and_has_no_gradient(implementation: str):
    weight = jnp.zeros((1000, 2)).at[500, 0].set(200.0)

    def total(hidden):
        out = linear_logprobs(hidden, weight, jnp.asarray([500]), want=ALL, implementation=implementation)
        return out.logp[0] + out.entropy[0], out

    gradient, out = gradients_and_fields(total)(jnp.ones((1, 2)))
    assert out.logp[0] == 0.0
    assert out.entropy[0] == 0.0
    assert not jnp.any(gradient)


@implementations
def test_equal_logits_are_uniform(implementation: str):
    weight = jnp.ones((1000, WIDTH))

    def total(hidden):
        out = linear_logprobs(hidden, weight, jnp.zeros(2, int), want=ALL, implementation=implementation)
        return jnp.sum(out.logp + out.entropy), out

    gradient, out = gradients_and_fields(total)(jnp.ones((2, WIDTH)))
    np.testing.assert_allclose(out.logp, np.full(2, -math.log(1000)), rtol=1e-6)
    np.testing.assert_allclose(out.entropy, np.full(2, math.log(1000)), rtol=1e-6)
    # 1 - 1 / 1000 - ... - 1 / 1000: equal terms round alike, so the errors of the sum do not cancel.
    np.testing.assert_allclose(gradient, np.zeros((2, WIDTH)), atol=2e-5)


@implementations
def test_equal_rows_get_equal_values(implementation: str):
    problem = random_problem()
    hidden = jnp.broadcast_to(problem.hidden[:1], problem.hidden.shape)
    out = compiled(want=ALL, implementation=implementation)(hidden, problem.weight, jnp.full(ROWS, 3))
    for field in out:
        if field is not None:
            np.testing.assert_allclose(field, jnp.broadcast_to(field[:1], field.shape), rtol=1e-6)


@implementations
def test_comparing_against_max_logit_finds_the_argmax(implementation: str):
    # `logp + lse >= max_logit` would miss a tenth to a half of them by a rounding; the difference rounds alike.
    rng = np.random.default_rng(0)
    hidden, weight = (jnp.asarray(rng.normal(size=(n, WIDTH)) / 4, jnp.float32) for n in (256, 1000))
    targets = jnp.argmax(jnp.einsum("nd,vd->nv", hidden, weight, precision="highest"), axis=-1)
    run = compiled(want=ALL, implementation=implementation)
    best, other = run(hidden, weight, targets), run(hidden, weight, (targets + 1) % 1000)
    assert jnp.all(best.logp >= best.max_logit - best.lse)
    assert not jnp.any(other.logp >= other.max_logit - other.lse)


@implementations
def test_no_gradient_flows_through_max_logit_or_temperature(implementation: str):
    problem = random_problem(40)

    def largest(hidden):
        out = linear_logprobs(hidden, problem.weight, problem.targets, want=ALL, implementation=implementation)
        return jnp.sum(out.max_logit)

    def likelihood(temperature):
        out = linear_logprobs(
            problem.hidden, problem.weight, problem.targets, temperature=temperature, implementation=implementation
        )
        return jnp.sum(out.logp)

    assert not jnp.any(jax.jit(jax.grad(largest))(problem.hidden))
    assert jax.jit(jax.grad(likelihood))(1.3) == 0.0


@implementations
def test_masked_rows_may_hold_nan(implementation: str):
    problem = random_problem()
    mask = jnp.arange(ROWS) % 2 == 0

    def total(hidden, weight, targets, mask):
        out = linear_logprobs(hidden, weight, targets, want=ALL, mask=mask, implementation=implementation)
        return jnp.sum(out.logp + 2 * out.lse - out.entropy), out

    differentiate = gradients_and_fields(total, (0, 1))
    dirty = jnp.where(mask[:, None], problem.hidden, jnp.nan)
    (d_hidden, d_weight), out = differentiate(dirty, problem.weight, problem.targets, mask)
    kept = slice(0, None, 2)
    (kept_d_hidden, kept_d_weight), kept_out = differentiate(
        problem.hidden[kept], problem.weight, problem.targets[kept], None
    )
    chex.assert_trees_all_close(jax.tree.map(lambda x: x[kept], out), kept_out, rtol=1e-6)
    chex.assert_trees_all_close((d_hidden[kept], d_weight), (kept_d_hidden, kept_d_weight), rtol=1e-5, atol=1e-6)
    assert not jnp.any(d_hidden[1::2])
    assert all(not jnp.any(getattr(out, name)[1::2]) for name in ALL)


@implementations
def test_what_is_no_word_has_no_probability(implementation: str):
    targets = jnp.asarray([-100, -1, 0, 4, 5, 1000])
    logp = linear_logprobs(jnp.ones((6, 3)), jnp.ones((5, 3)), targets, implementation=implementation).logp
    np.testing.assert_allclose(logp, [-jnp.inf, -jnp.inf, -jnp.log(5), -jnp.log(5), -jnp.inf, -jnp.inf], rtol=1e-6)


@implementations
@pytest.mark.parametrize("value", [jnp.inf, jnp.nan])
def test_a_row_that_is_not_finite_is_not_certain_of_anything(implementation: str, value: float):
    hidden = jnp.asarray([[value, 1.0], [1.0, 1.0]])
    weight = jnp.asarray([[1.0, 0.0], [0.5, 1.0], [0.25, 0.0]])
    want = ("logp", "lse", "entropy")
    out = linear_logprobs(hidden, weight, jnp.asarray([0, 0]), want=want, implementation=implementation)
    for field in (out.logp, out.lse, out.entropy):
        assert field is not None and not jnp.isfinite(field[0]) and jnp.isfinite(field[1])


@implementations
def test_all_rows_masked_gives_zeros(implementation: str):
    problem = random_problem(40)
    mask = jnp.zeros(ROWS, bool)

    def total(hidden, weight):
        out = linear_logprobs(hidden, weight, problem.targets, want=ALL, mask=mask, implementation=implementation)
        return jnp.sum(out.logp + out.lse + out.entropy), out

    gradients, out = gradients_and_fields(total, (0, 1))(jnp.full((ROWS, WIDTH), jnp.inf), problem.weight)
    chex.assert_trees_all_equal((gradients, out), jax.tree.map(jnp.zeros_like, (gradients, out)))


@implementations
def test_fields_not_wanted_are_none(implementation: str):
    problem = random_problem(40)
    arrays = (problem.hidden, problem.weight, problem.targets)
    everything = compiled(want=ALL, implementation=implementation)(*arrays)
    for want in ((), ("lse",), ("max_logit",), ("entropy", "logp")):
        out = compiled(want=want, implementation=implementation)(*arrays)
        expected = LogprobOut(**{name: getattr(everything, name) for name in want})
        chex.assert_trees_all_close(out, expected, rtol=1e-6)


def test_default_is_the_chunked_log_probability_alone():
    problem = random_problem()
    arrays = (problem.hidden, problem.weight, problem.targets)
    out = compiled()(*arrays)
    chex.assert_trees_all_equal(out, compiled(want=("logp",), implementation="chunked")(*arrays))
    assert out.logp is not None and out.lse is None


@implementations
def test_leading_axes_and_vmap_agree_with_rows(implementation: str):
    problem = random_problem()
    hidden, targets = problem.hidden[:6].reshape(2, 3, WIDTH), problem.targets[:6].reshape(2, 3)
    run = compiled(want=ALL, implementation=implementation)
    rows = run(problem.hidden[:6], problem.weight, problem.targets[:6])
    expected = jax.tree.map(lambda x: x.reshape(2, 3), rows)
    mapped = jax.vmap(run, in_axes=(0, None, 0))(hidden, problem.weight, targets)
    chex.assert_trees_all_close(run(hidden, problem.weight, targets), expected, rtol=1e-6)
    chex.assert_trees_all_close(mapped, expected, rtol=1e-6)
    single = run(problem.hidden[0], problem.weight, problem.targets[0])
    chex.assert_trees_all_close(single, jax.tree.map(lambda x: x[0], rows), rtol=1e-6)


@implementations
def test_gradient_is_the_same_under_vmap_and_checkpoint(implementation: str):
    problem = random_problem()
    hidden, targets = problem.hidden[:6].reshape(2, 3, WIDTH), problem.targets[:6].reshape(2, 3)

    def run(hidden, weight, targets):
        out = linear_logprobs(hidden, weight, targets, want=("logp", "entropy"), implementation=implementation)
        return out.logp + out.entropy

    def gradient_through(function):
        return jax.jit(jax.grad(lambda *arguments: jnp.sum(function(*arguments, targets)), (0, 1)))

    expected = gradient_through(run)(hidden, problem.weight)
    for function in (jax.vmap(run, in_axes=(0, None, 0)), jax.checkpoint(run)):
        actual = gradient_through(function)(hidden, problem.weight)
        chex.assert_trees_all_close(actual, expected, rtol=1e-5, atol=1e-6)


@implementations
def test_no_rows_give_no_values(implementation: str):
    out = compiled(want=ALL, implementation=implementation)(jnp.zeros((0, 4)), jnp.ones((9, 4)), jnp.zeros(0, int))
    assert all(getattr(out, name).shape == (0,) for name in ALL)


@implementations
def test_a_new_temperature_does_not_retrace(implementation: str):
    problem = random_problem(40)
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def run(temperature):
        return linear_logprobs(
            problem.hidden, problem.weight, problem.targets, temperature=temperature, implementation=implementation
        ).logp

    assert jnp.any(run(1.0) != run(0.7))


def test_unknown_field_is_an_error_that_names_the_choices():
    with pytest.raises(ValueError, match=r"\['perplexity'\].*logp.*lse.*entropy.*max_logit"):
        linear_logprobs(jnp.ones((2, 3)), jnp.ones((5, 3)), jnp.zeros(2, int), want=("logp", "perplexity"))


@pytest.mark.parametrize("name", ["mosaic", ""])
def test_unknown_implementation_is_an_error_that_names_the_choices(name: str):
    with pytest.raises(ValueError, match=f"implementation='{name}'.*chunked.*reference"):
        linear_logprobs(jnp.ones((2, 3)), jnp.ones((5, 3)), jnp.zeros(2, int), implementation=name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head": jnp.ones((5, 4))}, r"weight of `hidden` is float32\[5, 4\]; expected \[V, D\] with D = 3"),
        ({"head": Head(weight=jnp.ones((5, 3)), layout="dv")}, r"expected \[D, V\] with D = 3"),
        ({"head": Head(weight=jnp.ones((5, 3)), vocab_size=6)}, "has vocab_size=6, but its weight has 5 rows"),
        ({"hidden": jnp.ones((1, 3))}, r"hidden states `hidden` are float32\[1, 3\]; expected \[2\]"),
        ({"targets": jnp.zeros(2)}, "targets are float32"),
        ({"head": {"weight": 1}}, "the head of `hidden` is dict; expected a Head"),
        ({"ref": jnp.ones((2, 3)), "want": ("kl",)}, "ref must be a pair"),
        ({"want": "logp"}, "want='logp' is a string"),
        ({"mask": jnp.ones((2, 1), bool)}, r"mask is bool\[2, 1\]; expected bool\[2\]"),
        ({"mask": jnp.ones(2, int)}, r"mask is int32\[2\]; expected bool\[2\]"),
    ],
)
def test_arguments_that_do_not_fit_are_named(change: dict, message: str):
    arguments = {"hidden": jnp.ones((2, 3)), "head": jnp.ones((5, 3)), "targets": jnp.zeros(2, int)} | change
    with pytest.raises(ValueError, match=message):
        linear_logprobs(**arguments)


def test_an_unknown_layout_is_an_error():
    with pytest.raises(ValueError, match="layout='vocab' is unknown"):
        Head(weight=jnp.ones((5, 3)), layout="vocab")  # type: ignore[arg-type]


@pytest.mark.parametrize("head_spec", [P(), P("tensor", "fsdp")], ids=["replicated", "sharded"])
def test_sharded_equals_unsharded(head_spec: P):
    mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.normal(size=(16, WIDTH)), jnp.float32)
    weight = jnp.asarray(rng.normal(size=(1000, WIDTH)), jnp.float32)
    targets = jnp.asarray(rng.integers(1000, size=16))

    @jax.jit
    def run(hidden, weight, targets):
        def total(hidden, weight):
            out = linear_logprobs(hidden, weight, targets, want=("logp", "entropy"))
            return jnp.mean(out.logp - 0.1 * out.entropy), out

        return jax.value_and_grad(total, (0, 1), has_aux=True)(hidden, weight)

    def place(array: jax.Array, spec: P) -> jax.Array:
        return jax.device_put(array, NamedSharding(mesh, spec))

    rows = ("data", "fsdp")
    actual = run(place(hidden, P(rows, None)), place(weight, head_spec), place(targets, P(rows)))
    expected = run(hidden, weight, targets)
    assert len(actual[1][0].sharding.device_set) == 8
    chex.assert_trees_all_close(jax.device_get(actual), jax.device_get(expected), rtol=1e-5, atol=1e-6)


@implementations
def test_a_head_with_the_other_layout_gives_the_same(implementation: str):
    problem = random_problem()

    def total(layout, hidden, weight):
        head = Head(weight=weight, softcap=4.0, vocab_size=980, layout=layout)
        out = linear_logprobs(hidden, head, problem.targets % 980, want=ALL, implementation=implementation)
        return jnp.sum(out.logp + 0.3 * out.entropy), out

    run = functools.partial(gradients_and_fields, argnums=(0, 1))
    (d_hidden, d_weight), out = run(functools.partial(total, "vd"))(problem.hidden, problem.weight)
    (d_turned, d_turned_weight), turned = run(functools.partial(total, "dv"))(problem.hidden, problem.weight.T)
    chex.assert_trees_all_close((turned, d_turned, d_turned_weight.T), (out, d_hidden, d_weight), rtol=1e-5, atol=1e-6)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    rows=strategies.integers(1, 40),
    vocab=strategies.integers(1, 900),
    padding=strategies.integers(0, 30),
    kept=strategies.floats(0, 1),
    seed=strategies.integers(0, 99),
)
def test_any_shape_and_mask_matches_the_logits_in_memory(rows: int, vocab: int, padding: int, kept: float, seed: int):
    rng = np.random.default_rng(seed)
    hidden, weight = (jnp.asarray(rng.normal(size=(n, 8)), jnp.float32) for n in (rows, vocab + padding))
    targets, mask = jnp.asarray(rng.integers(vocab, size=rows)), jnp.asarray(rng.random(rows) < kept)
    ref = (jnp.tanh(hidden), Head(weight=weight, vocab_size=vocab))

    def total(implementation, hidden, weight):
        head = Head(weight=weight, vocab_size=vocab)
        out = linear_logprobs(
            hidden, head, targets, want=(*ALL, "kl"), mask=mask, ref=ref, implementation=implementation
        )
        return jnp.sum(out.logp + 0.5 * out.entropy + 0.2 * out.kl), out

    found = {
        name: gradients_and_fields(functools.partial(total, name), (0, 1))(hidden, weight)
        for name in ("chunked", "reference")
    }
    chex.assert_trees_all_close(found["chunked"], found["reference"], rtol=1e-4, atol=1e-5)
