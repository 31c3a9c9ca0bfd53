import dataclasses
import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from jaxrlhf.models import attention
from jaxrlhf.models.attention import (
    Case,
    choose_backend,
    keep_of_kernels,
    mix_blocked,
    mix_splash,
)
from jaxrlhf.models.cache import attention_mask
from jaxrlhf.models.config import ComputeConfig
from jaxrlhf.models.decoder import make_model, param_shapes
from jaxrlhf.sharding.mesh import AXES, make_mesh
from tests.models.tiny import TINY, positions_of, random_params, random_tokens

GPU = Case(platform="cuda", dtype="bfloat16", head_dim=64, tokens=512, cached=False)
TPU = GPU._replace(platform="tpu")
CPU = GPU._replace(platform="cpu", dtype="float32")


def segments_of(tokens):
    """Packed sequences before padding, one after padding, and nothing but padding."""
    third = tokens // 3
    rows = np.zeros((3, tokens), np.int32)
    rows[0, :third], rows[0, third : tokens - 5] = 1, 2
    rows[1, third:] = 1
    return jnp.asarray(rows)


def inputs(tokens, width, rows=3):
    shapes = [(rows, tokens, 4, width), (rows, tokens, 2, width), (rows, tokens, 2, width)]
    keys = jax.random.split(jax.random.key(0), 3)
    return [2 * jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]


def run(mix, segment_ids, parts):
    """Mixed values where a token is read, and the gradients of a sum of their squares."""

    def read(*parts):
        mixed = mix(*parts)
        return jnp.where((segment_ids != 0)[:, :, None, None], mixed, 0.0), mixed

    def loss(*parts):
        kept, mixed = read(*parts)
        return jnp.sum(jnp.square(kept)), (kept, mixed)

    (_, (kept, mixed)), grads = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(*parts)
    assert jnp.isfinite(mixed).all() and all(jnp.isfinite(grad).all() for grad in grads)
    return [kept, *grads]


def assert_near(found, expected):
    """Both are `run`'s; rounding is that of the largest numbers."""
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * float(jnp.abs(b).max()))


def dense(segment_ids):
    return functools.partial(jax.nn.dot_product_attention, mask=attention_mask(segment_ids, None))


@pytest.mark.parametrize("tokens", [37, 64, 768])
def test_blocks_of_queries_equal_the_whole_square(tokens):
    segment_ids, parts = segments_of(tokens), inputs(tokens, 8)
    found = run(functools.partial(mix_blocked, attention_mask(segment_ids, None)), segment_ids, parts)
    assert_near(found, run(dense(segment_ids), segment_ids, parts))


def test_blocks_of_queries_sum_in_float32():
    segment_ids, parts = segments_of(64), inputs(64, 8)
    mask = attention_mask(segment_ids, None)
    mix = jax.jit(functools.partial(mix_blocked, mask))
    low = mix(*(part.astype(jnp.bfloat16) for part in parts))
    assert low.dtype == jnp.bfloat16
    gap = np.abs(low.astype(jnp.float32) - mix(*parts))[segment_ids != 0]
    assert gap.max() < 0.15 and gap.mean() < 0.01


@pytest.mark.parametrize("tokens", [128, 130])
def test_splash_equals_the_whole_square(tokens):
    segment_ids, parts = segments_of(tokens), inputs(tokens, 64)
    found = run(functools.partial(mix_splash, segment_ids, interpret=True), segment_ids, parts)
    assert_near(found, run(dense(segment_ids), segment_ids, parts))


@pytest.mark.parametrize("rows", [4, 3])
def test_splash_runs_on_each_devices_rows_and_heads(monkeypatch, rows):
    monkeypatch.setattr(attention, "mix_splash", functools.partial(mix_splash, interpret=True))
    segment_ids, parts = jnp.asarray(np.ones((rows, 128), np.int32)), inputs(128, 64, rows)
    with jax.set_mesh(make_mesh(2, 2, 2)):
        mixed = jax.jit(functools.partial(attention._splash_over_mesh, segment_ids))(*parts)
        np.testing.assert_allclose(mixed, dense(segment_ids)(*parts), rtol=1e-4, atol=1e-4)
        if rows == 4:
            assert mixed.addressable_shards[0].data.shape == (1, 128, 2, 64)


def test_what_cudnn_is_asked_for_lets_a_segment_see_its_prefix(monkeypatch):
    """Without the kernel: the mask, which it gets with `is_causal`."""
    segments = jnp.asarray([[1] * 6 + [2] * 5 + [3] * 4 + [0]])
    prefixes, parts = jnp.where(segments > 1, 1, 0), inputs(16, 8, rows=1)
    expected = jax.nn.dot_product_attention(*parts, mask=attention_mask(segments, None, prefixes))

    def without_kernel(*parts, implementation, **options):
        assert implementation == "cudnn"
        return dot_product_attention(*parts, **options)

    dot_product_attention = jax.nn.dot_product_attention
    monkeypatch.setattr(jax.nn, "dot_product_attention", without_kernel)
    mixed = attention._cudnn(segments, prefixes, *parts)
    np.testing.assert_allclose(mixed[:, :-1], expected[:, :-1], rtol=1e-5, atol=1e-6)


def test_the_fastest_that_can_run_is_chosen():
    assert [choose_backend("auto", case) for case in (GPU, TPU, CPU)] == ["cudnn", "splash", "xla"]
    assert choose_backend("xla", GPU) == "xla"
    assert choose_backend("auto", GPU._replace(platform="rocm")) == "xla"


@pytest.mark.parametrize("asked", ["auto", "cudnn", "splash"])
def test_decoding_stays_with_xla(asked):
    assert choose_backend(asked, GPU._replace(cached=True, tokens=1)) == "xla"


@pytest.mark.parametrize(
    ("case", "need"),
    [
        (GPU._replace(dtype="float32"), "cudnn needs compute.dtype=bfloat16; it is float32"),
        (GPU._replace(head_dim=256), "cudnn needs heads of 8, 16, ... 128; head_dim is 256"),
        (GPU._replace(tokens=511), "cudnn needs an even number of tokens a row; there are 511"),
        (TPU._replace(head_dim=80), "splash needs heads of 64, 128, ...; head_dim is 80"),
        (TPU._replace(tokens=64), "splash needs 128 tokens a row or more; there are 64"),
        (
            TPU._replace(prefixes=True),
            "splash needs a row for each answer, not one that answers share (data.share_prompts=false)",
        ),
    ],
)
def test_auto_falls_back_and_says_so_once(caplog, case, need):
    attention._say_once.cache_clear()
    with caplog.at_level(logging.INFO, logger="jaxrlhf"):
        assert [choose_backend("auto", case) for _ in range(2)] == ["xla", "xla"]
    assert caplog.messages == [f"attention runs on xla: {need}"]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("cudnn", "compute.attention='cudnn' needs an NVIDIA GPU; the program is for cpu; choose 'auto' or 'xla'"),
        ("splash", "compute.attention='splash' needs a TPU; the program is for cpu; choose 'auto' or 'xla'"),
    ],
)
def test_what_is_asked_for_and_cannot_run_is_an_error(asked, message):
    model = make_model(TINY, ComputeConfig(attention=asked))
    ones = jnp.ones((1, 4), jnp.int32)
    with pytest.raises(ValueError, match=message):
        model.apply(param_shapes(TINY), ones, positions=ones, segment_ids=ones)


def mesh_of(kind, platform):
    device = AbstractDevice(device_kind=kind, num_cores=None, platform=platform)
    return AbstractMesh((1, 1, 1), AXES, axis_types=(AxisType.Auto,) * 3, abstract_device=device)


def test_a_program_for_tpus_has_the_kernel_and_no_mask():
    config = dataclasses.replace(TINY, head_dim=64)
    model = make_model(config)
    ids = jax.ShapeDtypeStruct((2, 256), jnp.int32)

    def forward(params, ids):
        return model.apply(params, ids, positions=ids, segment_ids=ids).hidden

    with jax.sharding.use_abstract_mesh(mesh_of("TPU v5 lite", "tpu")):
        program = str(jax.make_jaxpr(forward)(param_shapes(config), ids))
    assert "pallas_call" in program and "2,1,256,256]" not in program
    assert "2,1,256,256]" in str(jax.make_jaxpr(forward)(param_shapes(config), ids))


def test_long_rows_equal_the_whole_square_and_score_alike_with_and_without_gradients(monkeypatch):
    model, params = make_model(TINY), random_params(TINY)
    tokens, segments = random_tokens(2, 256), np.ones((2, 256), np.int32)
    segments[0, 100:], segments[1, :9] = 2, 0

    def hidden(params):
        return model.apply(params, tokens, positions=positions_of(segments), segment_ids=jnp.asarray(segments)).hidden

    def loss(params):
        out = hidden(params)
        return jnp.sum(jnp.square(out)), out

    alone = jax.jit(hidden)(params)
    (_, within), _ = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    np.testing.assert_array_equal(alone, within)
    monkeypatch.setattr(attention, "_BLOCKED_FROM", 257)
    real = segments != 0
    np.testing.assert_allclose(alone[real], jax.jit(lambda params: hidden(params))(params)[real], rtol=1e-4, atol=1e-4)


def test_the_kernel_of_cudnn_has_the_name_that_remat_keeps():
    from jax._src.cudnn.fused_attention_stablehlo import _dot_product_attention_fwd_p_wrapper as forward

    assert keep_of_kernels(forward)
    assert not keep_of_kernels(jax.lax.exp_p)
