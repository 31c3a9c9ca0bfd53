import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrlhf.kernels.logits import logits_of
from jaxrlhf.models.config import ComputeConfig
from jaxrlhf.models.decoder import init_params, make_model, param_shapes
from jaxrlhf.sharding.mesh import make_mesh
from jaxrlhf.sharding.place import place_batch
from jaxrlhf.sharding.rules import shardings_for
from tests.models.tiny import SCALAR, TINY, logits, positions_of, random_params, random_tokens

MODEL = make_model(TINY)
TIGHT = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(scope="module")
def params():
    return random_params(TINY)


def mean_square(model, params, tokens, segment_ids):
    out = logits(model, params, tokens, segment_ids)
    return jnp.sum(jnp.where((segment_ids != 0)[..., None], out, 0.0) ** 2) / out.size


@pytest.mark.parametrize(("left", "right"), [(4, 0), (0, 3), (1, 3)])
def test_padding_changes_nothing(params, left, right):
    tokens = random_tokens(2, 6)
    padded = jnp.pad(tokens, ((0, 0), (left, right)), constant_values=9)
    segments = np.pad(np.ones((2, 6), np.int32), ((0, 0), (left, right)))
    out = logits(MODEL, params, padded, segments)
    np.testing.assert_allclose(out[:, left : left + 6], logits(MODEL, params, tokens), **TIGHT)
    assert jnp.isfinite(out).all()


def test_packed_sequences_do_not_see_each_other(params):
    first, second = random_tokens(1, 5, seed=1), random_tokens(1, 7, seed=2)
    packed = jnp.concatenate([first, second, jnp.zeros((1, 2), jnp.int32)], axis=1)
    out = logits(MODEL, params, packed, [[1] * 5 + [2] * 7 + [0] * 2])
    np.testing.assert_allclose(out[:, :5], logits(MODEL, params, first), **TIGHT)
    np.testing.assert_allclose(out[:, 5:12], logits(MODEL, params, second), **TIGHT)


@pytest.mark.parametrize("length", [7, 130])
def test_sequences_behind_a_prefix_are_those_that_begin_with_it(params, length):
    prefix, endings = random_tokens(1, length, seed=1), [random_tokens(1, length - 2, seed=2), random_tokens(1, length)]
    row = jnp.concatenate([prefix, *endings, jnp.zeros((1, 3), jnp.int32)], axis=1)
    segments = jnp.asarray([[1] * length + [2] * (length - 2) + [3] * length + [0] * 3])
    positions = jnp.concatenate([*map(jnp.arange, (length, length - 2, length, 3))])[None] + length * (segments > 1)
    prefixes = jnp.where(segments > 1, 1, 0)

    @jax.jit
    def run(params):
        output = MODEL.apply(params, row, positions=positions, segment_ids=segments, prefix_ids=prefixes)
        return output.hidden @ MODEL.head(params).weight.T

    out = run(params)
    assert jnp.isfinite(out).all()
    for number, ending in enumerate(endings, start=2):
        expected = logits(MODEL, params, jnp.concatenate([prefix, ending], axis=1))
        np.testing.assert_allclose(out[:, :length], expected[:, :length], **TIGHT)
        np.testing.assert_allclose(out[segments == number], expected[0, length:], **TIGHT)


def test_later_tokens_do_not_change_earlier_ones(params):
    tokens = random_tokens(1, 8)
    changed = tokens.at[0, 5].set((tokens[0, 5] + 1) % TINY.vocab_size)
    before, after = logits(MODEL, params, tokens), logits(MODEL, params, changed)
    np.testing.assert_array_equal(before[:, :5], after[:, :5])
    assert (jnp.abs(before[:, 5:] - after[:, 5:]).max(axis=-1) > 1e-4).all()


@pytest.fixture(params=["unrolled", "in_a_loop"])
def decoding(request, monkeypatch):
    """As on CPU, where each layer has its own arrays while decoding, and as on accelerators."""
    monkeypatch.setattr(
        "jaxrlhf.models.decoding.target_platform", lambda: {"unrolled": "cpu"}.get(request.param, "tpu")
    )


def test_decoding_with_a_cache_equals_the_full_forward(params, decoding):
    tokens = random_tokens(2, 9)
    segments = np.ones((2, 9), np.int32)
    segments[1, :2] = 0  # the second prompt is shorter, padded on the left
    expected = logits(MODEL, params, tokens, segments)
    positions, segment_ids = positions_of(segments), jnp.asarray(segments)
    prepared = MODEL.prepare(params)

    @jax.jit
    def run(cache, part):
        tokens, positions, segment_ids = part
        output = MODEL.apply(prepared, tokens, positions=positions, segment_ids=segment_ids, cache=cache)
        return output.cache, logits_of(output.hidden, MODEL.head(prepared))

    cache, found = dataclasses.replace(MODEL.init_cache(2, 12), start=jnp.asarray([0, 2])), []
    for start, stop in [(0, 5), (5, 6), (6, 7), (7, 9)]:
        cache, out = run(cache, tuple(x[:, start:stop] for x in (tokens, positions, segment_ids)))
        found.append(out)
    assert int(cache.index) == 9
    real = segments.astype(bool)
    np.testing.assert_allclose(jnp.concatenate(found, axis=1)[real], expected[real], **TIGHT)


def test_tokens_that_fill_their_cache_equal_those_without_one(params):
    tokens, ones = random_tokens(2, 6), jnp.ones((2, 6), jnp.int32)
    positions = positions_of(np.ones((2, 6)))
    expected = MODEL.apply(params, tokens, positions=positions, segment_ids=ones)
    prepared, cache = MODEL.prepare(params), MODEL.init_cache(2, 6)
    found = MODEL.apply(prepared, tokens, positions=positions, segment_ids=ones, cache=cache)
    np.testing.assert_allclose(found.hidden, expected.hidden, **TIGHT)
    assert all(part.any() for part in jax.tree.leaves(found.cache.keys))


def test_a_cache_needs_prepared_parameters(params):
    one = jnp.ones((2, 1), jnp.int32)
    with pytest.raises(ValueError, match="apply Model.prepare to the parameters first"):
        MODEL.apply(params, one, positions=one, segment_ids=one, cache=MODEL.init_cache(2, 4))


def test_a_decoding_step_updates_the_cache_in_place(params, decoding):
    cache = MODEL.init_cache(4, 512)
    prepared = MODEL.prepare(params)
    one = jnp.ones((4, 1), jnp.int32)

    def step(cache, params):
        return MODEL.apply(params, one, positions=one, segment_ids=one, cache=cache)

    analysis = jax.jit(step, donate_argnums=0).lower(cache, prepared).compile().memory_analysis()
    both = sum(part.nbytes for part in jax.tree.leaves((cache.keys, cache.values)))
    assert analysis.alias_size_in_bytes >= both
    assert analysis.temp_size_in_bytes < both


@pytest.mark.parametrize("compute", [
    ComputeConfig(remat="full"), ComputeConfig(remat="dots"), ComputeConfig(scan_unroll=2),
    ComputeConfig(scan_unroll=8, remat="full"),
])  # fmt: skip
def test_remat_and_unrolling_change_neither_loss_nor_gradient(params, compute):
    tokens, segments = random_tokens(2, 6), np.ones((2, 6), np.int32)

    def run(model):
        return jax.jit(jax.value_and_grad(lambda params: mean_square(model, params, tokens, segments)))(params)

    (loss, grads), (expected, expected_grads) = run(make_model(TINY, compute)), run(MODEL)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), grads, expected_grads)


def test_remat_saves_memory(params):
    tokens, segments = random_tokens(8, 64), np.ones((8, 64), np.int32)

    def temporaries(remat):
        model = make_model(TINY, ComputeConfig(remat=remat))
        grad = jax.jit(jax.grad(lambda params: mean_square(model, params, tokens, segments)))
        return grad.lower(params).compile().memory_analysis().temp_size_in_bytes

    assert temporaries("full") < temporaries("dots") < temporaries("none")


def test_gradients_are_finite_with_rows_of_padding(params):
    segments = np.ones((3, 6), np.int32)
    segments[1] = 0
    segments[2, :3] = 0
    tokens = random_tokens(3, 6)
    grads = jax.jit(jax.grad(lambda params: mean_square(MODEL, params, tokens, segments)))(params)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
    kept = jax.jit(jax.grad(lambda params: mean_square(MODEL, params, tokens[::2], segments[::2])))(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b * 2 / 3, rtol=1e-4, atol=1e-6), grads, kept)


def test_bfloat16_compute_is_near_float32_and_leaves_parameters_alone(params):
    tokens = random_tokens(2, 6)
    model = make_model(TINY, ComputeConfig(dtype="bfloat16"))
    positions, ones = positions_of(np.ones((2, 6))), jnp.ones((2, 6), jnp.int32)
    output = model.apply(params, tokens, positions=positions, segment_ids=ones)
    assert output.hidden.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in model.init_cache(1, 4).keys} == {jnp.dtype("bfloat16")}
    assert {leaf.dtype for leaf in model.init_cache(1, 4, jnp.float32).keys} == {jnp.dtype("float32")}
    assert model.head(params).weight.dtype == jnp.float32
    exact = MODEL.apply(params, tokens, positions=positions, segment_ids=ones).hidden
    np.testing.assert_allclose(output.hidden.astype(jnp.float32), exact, atol=0.1)


def test_heads_are_the_unembedding_the_embedding_or_the_score():
    tied = dataclasses.replace(TINY, tie_embeddings=True)
    for config, path, shape in [
        (TINY, ("lm_head", "kernel"), (64, 32)),
        (tied, ("embed_tokens", "embedding"), (64, 32)),
        (SCALAR, ("score", "kernel"), (1, 32)),
    ]:
        params = param_shapes(config)
        weight = make_model(config).head(params).weight
        assert weight.shape == shape and weight is params[path[0]][path[1]]
        assert ("lm_head" in params) == (config is TINY)


def test_fresh_parameters_have_the_published_spread():
    params = jax.jit(init_params, static_argnums=0)(TINY, jax.random.key(0))
    for leaf in (params["embed_tokens"]["embedding"], params["layers"]["mlp"]["up_proj"]["kernel"]):
        np.testing.assert_allclose(jnp.std(leaf), 0.02, rtol=0.1)
    kernels = params["layers"]["self_attn"]["q_proj"]["kernel"]
    assert kernels.shape == (3, 32, 32) and not jnp.allclose(kernels[0], kernels[1])
    assert jax.tree.map(lambda x: (x.shape, x.dtype), params) == jax.tree.map(
        lambda x: (x.shape, x.dtype), param_shapes(TINY)
    )


@pytest.mark.parametrize("sizes", [(8, 1, 1), (1, 8, 1), (2, 2, 2)])
def test_sharded_equals_unsharded_in_loss_gradient_and_decoding(params, sizes):
    tokens = np.asarray(random_tokens(8, 6))
    segments = np.ones((8, 6), np.int32)
    segments[3, :4] = 0
    grad = jax.value_and_grad(lambda params, tokens: mean_square(MODEL, params, tokens, segments))

    def decode(params, tokens):
        positions, segment_ids = positions_of(segments), jnp.asarray(segments)
        params = MODEL.prepare(params)
        cache = dataclasses.replace(MODEL.init_cache(8, 6), start=jnp.zeros(8, jnp.int32).at[3].set(4))
        for start, stop in [(0, 5), (5, 6)]:
            part = slice(start, stop)
            output = MODEL.apply(
                params, tokens[:, part], positions=positions[:, part], segment_ids=segment_ids[:, part], cache=cache
            )
            cache = output.cache
        return output.hidden

    (expected, expected_grads), expected_hidden = jax.jit(grad)(params, tokens), jax.jit(decode)(params, tokens)
    mesh = make_mesh(*sizes)
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, shardings_for(params, mesh)[0])
        batch = place_batch(tokens, mesh)
        loss, grads = jax.jit(grad)(placed, batch)
        hidden = jax.jit(decode)(placed, batch)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(hidden, expected_hidden, **TIGHT)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), grads, expected_grads)
