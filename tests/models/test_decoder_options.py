"""What `test_decoder.py` asks of the plain decoder, asked of its options."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrlhf.kernels.logits import logits_of
from jaxrlhf.models.config import ComputeConfig, LayerKind, ModelConfig
from jaxrlhf.models.decoder import make_model
from jaxrlhf.sharding.mesh import make_mesh
from jaxrlhf.sharding.place import place_batch
from jaxrlhf.sharding.rules import shardings_for
from tests.models.tiny import TINY, logits, positions_of, random_params, random_tokens

OPTIONS: dict[str, ModelConfig] = {
    # Two rounds of two kinds of layers, and one that is left.
    "capped, alternating": dataclasses.replace(
        TINY, num_layers=5, pattern=(LayerKind(window=3), LayerKind(rope_theta=100.0)), norm_placement="both",
        norm_offset=1.0, qk_norm="head", embedding_scale=5.5, query_scale=0.3, attention_softcap=4.0,
        final_softcap=3.0, activation="gelu_tanh", tie_embeddings=True,
    ),
    "learned positions": dataclasses.replace(
        TINY, num_layers=2, pattern=(LayerKind(rope_theta=None),), learned_positions=True, norm="layer", qkv_bias=True,
        out_bias=True, mlp_bias=True, gated_mlp=False, activation="gelu_tanh", tie_embeddings=True,
    ),
    "parallel": dataclasses.replace(
        TINY, num_layers=2, norm="layer", parallel_residual=True, rotary_dim=4, qkv_bias=True, out_bias=True,
        mlp_bias=True, gated_mlp=False, activation="gelu",
    ),
    "normalised after": dataclasses.replace(TINY, num_layers=2, norm_placement="post", qk_norm="width"),
    "fewer layers than kinds": dataclasses.replace(
        TINY, num_layers=2, pattern=(LayerKind(), LayerKind(window=2), LayerKind(window=3)),
    ),
}  # fmt: skip
TIGHT = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(scope="module", params=list(OPTIONS), ids=lambda name: name.replace(" ", "-").replace(",", ""))
def config(request):
    return OPTIONS[request.param]


def loss_of(model, params, tokens, segments):
    return jnp.mean(jnp.where((segments != 0)[..., None], logits(model, params, tokens, segments), 0.0) ** 2)


def test_packed_and_padded_rows_equal_single_ones(config):
    model, params = make_model(config), random_params(config)
    first, second = random_tokens(1, 5, seed=1), random_tokens(1, 7, seed=2)
    packed = jnp.concatenate([jnp.zeros((1, 2), jnp.int32), first, second, jnp.zeros((1, 2), jnp.int32)], axis=1)
    out = logits(model, params, packed, [[0] * 2 + [1] * 5 + [2] * 7 + [0] * 2])
    alone = [logits(model, params, tokens) for tokens in (first, second)]
    if config.final_softcap is not None:  # the head's, which `logits` leaves to the kernel
        assert model.head(params).softcap == config.final_softcap
    np.testing.assert_allclose(out[:, 2:7], alone[0], **TIGHT)
    np.testing.assert_allclose(out[:, 7:14], alone[1], **TIGHT)
    assert jnp.isfinite(out).all()


def test_sequences_behind_a_prefix_are_those_that_begin_with_it(config):
    model, params = make_model(config), random_params(config)
    prefix, endings = random_tokens(1, 6, seed=1), [random_tokens(1, 4, seed=2), random_tokens(1, 5)]
    row = jnp.concatenate([prefix, *endings], axis=1)
    segments = jnp.asarray([[1] * 6 + [2] * 4 + [3] * 5])
    positions = jnp.concatenate([*map(jnp.arange, (6, 4, 5))])[None] + 6 * (segments > 1)
    out = model.apply(
        params, row, positions=positions, segment_ids=segments, prefix_ids=jnp.where(segments > 1, 1, 0)
    ).hidden @ model.head(params).weight.T  # fmt: skip
    for number, ending in enumerate(endings, start=2):
        expected = logits(model, params, jnp.concatenate([prefix, ending], axis=1))
        np.testing.assert_allclose(out[segments == number], expected[0, 6:], **TIGHT)


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_decoding_with_a_cache_equals_the_full_forward(config, platform, monkeypatch):
    monkeypatch.setattr("jaxrlhf.models.decoding.target_platform", lambda: platform)
    model, params, tokens = make_model(config), random_params(config), random_tokens(2, 9)
    segments = np.ones((2, 9), np.int32)
    segments[1, :2] = 0
    expected = logits_of(
        model.apply(params, tokens, positions=positions_of(segments), segment_ids=jnp.asarray(segments)).hidden,
        model.head(params),
    )
    positions, prepared = positions_of(segments), model.prepare(params)
    cache, found = dataclasses.replace(model.init_cache(2, 12), start=jnp.asarray([0, 2])), []
    run = jax.jit(lambda cache, *part: model.apply(
        prepared, part[0], positions=part[1], segment_ids=part[2], cache=cache
    ))  # fmt: skip
    for start, stop in [(0, 5), (5, 6), (6, 9)]:
        output = run(cache, *(x[:, start:stop] for x in (tokens, positions, jnp.asarray(segments))))
        cache, hidden = output.cache, output.hidden
        found.append(logits_of(hidden, model.head(prepared)))
    real = segments.astype(bool)
    np.testing.assert_allclose(jnp.concatenate(found, axis=1)[real], expected[real], **TIGHT)


def test_sharded_and_recomputed_equals_neither(config):
    """In loss and gradient; what does not divide, such as heads of keys over four devices, is kept whole."""
    tokens, segments, params = np.asarray(random_tokens(4, 6)), np.ones((4, 6), np.int32), random_params(config)
    segments[3, :4] = 0

    def run(compute, params, tokens):
        return jax.jit(jax.value_and_grad(lambda p, t: loss_of(make_model(config, compute), p, t, segments)))(
            params, tokens
        )

    expected, expected_grads = run(ComputeConfig(), params, tokens)
    mesh = make_mesh(2, 1, 4)
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, shardings_for(params, mesh)[0])
        loss, grads = run(ComputeConfig(remat="full", scan_unroll=2), placed, place_batch(tokens, mesh))
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), grads, expected_grads)
    assert all(jnp.abs(leaf).max() > 0 for leaf in jax.tree.leaves(grads))


def test_layers_take_their_kinds_in_turn():
    """The first of two kinds has a window of 3 tokens, the second none."""
    config, tokens = OPTIONS["capped, alternating"], random_tokens(1, 6)
    params = random_params(dataclasses.replace(config, num_layers=1))
    changed = tokens.at[0, 0].set((tokens[0, 0] + 1) % config.vocab_size)

    def by_how_much(pattern):
        model = make_model(dataclasses.replace(config, num_layers=1, pattern=pattern))
        return jnp.abs(logits(model, params, tokens) - logits(model, params, changed)).max(axis=-1)[0]

    local, whole = by_how_much(config.pattern), by_how_much(config.pattern[1:])
    assert (local[:3] > 1e-5).all() and (local[3:] == 0).all()
    assert (whole > 1e-5).all()


@pytest.mark.parametrize(
    ("layers", "kinds", "unroll", "expected"),
    [
        (6, 2, 1, {False}),  # three rounds of a loop
        (5, 3, 1, {True}),  # one round, which is none, and two layers behind it
        (7, 3, 1, {False, True}),
        (4, 4, 1, {True}),
        (4, 1, 2, {False}),
        (4, 2, 4, {True}),
    ],
)
def test_layers_outside_a_loop_are_kept_from_sharing_what_they_recompute(layers, kinds, unroll, expected):
    pattern = tuple(LayerKind(window=number) for number in range(2, 2 + kinds))
    config = dataclasses.replace(TINY, num_layers=layers, pattern=pattern)
    model = make_model(config, ComputeConfig(remat="full", scan_unroll=unroll))
    ids = jnp.ones((1, 4), jnp.int32)
    program = jax.make_jaxpr(lambda params: model.apply(params, ids, positions=ids, segment_ids=ids).hidden)(
        random_params(config)
    )
    assert {flag == "True" for flag in re.findall(r"prevent_cse=(\w+)", str(program))} == expected
