import dataclasses
import logging
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from jaxrlhf.models import attention
from jaxrlhf.models.attention import Case, check_attention, choose_backend, make_mix, why_not_share
from jaxrlhf.models.cache import make_cache
from jaxrlhf.models.config import ComputeConfig, LayerKind
from jaxrlhf.models.decoder import make_model, param_shapes
from jaxrlhf.models.mix_kernels import mix_splash_over_mesh
from jaxrlhf.models.mix_xla import mix_cached, mix_whole
from jaxrlhf.sharding.mesh import AXES
from tests.models.tiny import TINY, positions_of, random_params, random_tokens

GPU = Case(platform="cuda", dtype="bfloat16", head_dim=64, tokens=512)
TPU = GPU._replace(platform="tpu")
CPU = GPU._replace(platform="cpu", dtype="float32")
TPUS = SimpleNamespace(devices=np.array([SimpleNamespace(platform="tpu", device_kind="TPU v5 lite")]))


def mesh_of(kind, platform):
    device = AbstractDevice(device_kind=kind, num_cores=None, platform=platform)
    return AbstractMesh((1, 1, 1), AXES, axis_types=(AxisType.Auto,) * 3, abstract_device=device)


def test_the_fastest_that_can_run_is_chosen():
    assert [choose_backend("auto", case) for case in (GPU, TPU, CPU)] == ["cudnn", "splash", "xla"]
    assert choose_backend("xla", GPU) == "xla"
    assert choose_backend("auto", GPU._replace(tokens=511)) == "cudnn"
    assert choose_backend("auto", GPU._replace(platform="rocm")) == "xla"


@pytest.mark.parametrize("asked", ["auto", "splash"])
def test_a_prompt_that_is_too_short_for_the_backend_of_training_runs_on_xla(monkeypatch, caplog, asked):
    monkeypatch.setattr(attention, "target_platform", lambda: "tpu")
    config, compute = dataclasses.replace(TINY, head_dim=64), ComputeConfig(attention=asked)
    short, long = (jnp.ones((1, tokens), jnp.int32) for tokens in (5, 128))
    with caplog.at_level(logging.INFO, logger="jaxrlhf"):
        caches = [make_cache(config, 1, ids.shape[1], "float32", stacked=True) for ids in (short, long)]
        mixes = [
            make_mix(config, compute, LayerKind(), ids, ids, cache)
            for ids, cache in zip((short, long), caches, strict=True)
        ]
    assert [mix.func for mix in mixes] == [mix_whole, mix_splash_over_mesh] and not caplog.messages


@pytest.mark.parametrize("asked", ["auto", "splash", "xla"])
def test_tokens_after_others_read_the_cache(monkeypatch, asked):
    monkeypatch.setattr(attention, "target_platform", lambda: "tpu")
    cache = make_cache(TINY, 1, 6, "float32", stacked=True)
    ids = jnp.ones((1, 5), jnp.int32)
    assert make_mix(TINY, ComputeConfig(attention=asked), LayerKind(), ids, ids, cache).func is mix_cached


@pytest.mark.parametrize(
    ("case", "need"),
    [
        (GPU._replace(dtype="float32"), "cudnn needs compute.dtype=bfloat16; it is float32"),
        (GPU._replace(head_dim=256), "cudnn needs heads of 8, 16, ... 128; head_dim is 256"),
        (TPU._replace(head_dim=80), "splash needs heads of 64, 128, ...; head_dim is 80"),
        (TPU._replace(tokens=64), "splash needs 128 tokens a row or more; there are 64"),
        (
            TPU._replace(prefixes=True),
            "splash needs a row for each answer, not one that answers share (share_prompts=false)",
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


@pytest.mark.parametrize(
    ("asked", "dtype", "prefixes", "message"),
    [
        ("cudnn", "bfloat16", False, "'cudnn' needs an NVIDIA GPU; the program is for tpu; choose 'auto' or 'xla'"),
        ("cudnn", "float32", False, "'cudnn' needs an NVIDIA GPU; the program is for tpu; choose 'auto' or 'xla'"),
        ("splash", "float32", True, "'splash' needs a row for each answer"),
    ],
)
def test_what_no_model_could_run_on_these_devices_is_refused_before_one_is_loaded(asked, dtype, prefixes, message):
    with pytest.raises(ValueError, match=f"compute.attention={message}"):
        check_attention(TPUS, ComputeConfig(attention=asked, dtype=dtype), prefixes=prefixes)


def test_what_these_devices_can_run_is_not_refused():
    for asked in ("auto", "xla", "splash"):
        check_attention(TPUS, ComputeConfig(attention=asked))
    check_attention(TPUS, ComputeConfig(attention="auto"), prefixes=True)


HOLDS_SCORES = "attention on xla would hold the scores of longer rows"


@pytest.mark.parametrize(
    ("kind", "platform", "tokens", "changes", "expected"),
    [
        ("TPU v5 lite", "tpu", 128, {}, "attention on splash needs that"),
        ("TPU v5 lite", "tpu", 127, {}, HOLDS_SCORES),  # too short for splash
        ("TPU v5 lite", "tpu", 128, {"attention": "xla"}, HOLDS_SCORES),
        ("NVIDIA H200", "gpu", 128, {}, None),
        ("NVIDIA H200", "gpu", 128, {"dtype": "float32"}, HOLDS_SCORES),
        ("cpu", "cpu", 128, {}, None),
    ],
)
def test_answers_have_a_row_each_where_attention_would_suffer(kind, platform, tokens, changes, expected):
    config = dataclasses.replace(TINY, head_dim=64)
    with jax.sharding.use_abstract_mesh(mesh_of(kind, platform)):
        assert why_not_share(config, ComputeConfig(**{"dtype": "bfloat16"} | changes), tokens) == expected


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
