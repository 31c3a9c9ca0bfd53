import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from benchmarks.load_memory import measured_apart
from jaxrlhf.models import kept
from jaxrlhf.models.decoder import param_shapes
from jaxrlhf.models.folder import read_config
from jaxrlhf.models.kept import kept_shapes
from jaxrlhf.models.quantized import keep_as
from jaxrlhf.models.streaming import stream
from jaxrlhf.models.tensors import flatten, tensor_entries
from jaxrlhf.models.weights import load_params
from jaxrlhf.sharding.mesh import make_mesh
from jaxrlhf.sharding.rules import shardings_for
from tests.models.tiny import SCALAR, STORIES, TINY

CONFIG = read_config(STORIES)


def published(config=TINY):
    """Random tensors of a tiny model under their published names."""
    rng = np.random.default_rng(0)
    return {entry.name: rng.normal(size=entry.shape).astype(np.float32) for entry in tensor_entries(config)}


def save(folder, tensors):
    save_file(tensors, folder / "model.safetensors")
    return folder


def test_real_weights_are_read_bit_for_bit():
    tensors = load_file(STORIES / "model.safetensors")
    params, report = load_params(STORIES, CONFIG)
    np.testing.assert_array_equal(params["embed_tokens"]["embedding"], tensors["model.embed_tokens.weight"])
    for layer in range(5):
        name = f"model.layers.{layer}.mlp.down_proj.weight"
        np.testing.assert_array_equal(params["layers"]["mlp"]["down_proj"]["kernel"][layer], tensors[name].T)
    assert (report.dtypes, report.ignored, report.initialised) == ({"F32": 47}, (), ())


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16])
def test_half_precision_becomes_float32_without_loss(tmp_path, dtype):
    tensors = {name: value.astype(dtype) for name, value in published().items()}
    params, report = load_params(save(tmp_path, tensors), TINY)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    expected = tensors["model.layers.2.self_attn.q_proj.weight"].astype(np.float32).T
    np.testing.assert_array_equal(params["layers"]["self_attn"]["q_proj"]["kernel"][2], expected)
    assert sum(report.dtypes.values()) == 30 and "F32" not in report.dtypes


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
@pytest.mark.parametrize("pieces", [4000, 1 << 20])
def test_parameters_are_kept_as_the_whole_would_be(monkeypatch, dtype, pieces):
    monkeypatch.setattr(kept, "stream", functools.partial(stream, piece_bytes=pieces))
    whole, _ = load_params(STORIES, CONFIG)
    shardings, _ = shardings_for(kept_shapes(CONFIG, dtype), make_mesh(2, 2, 2))
    for where in (None, shardings):
        params, report = load_params(STORIES, CONFIG, shardings=where, dtype=dtype)
        jax.tree.map(np.testing.assert_array_equal, params, keep_as(whole, dtype))
        assert jax.tree.map(lambda x: x.dtype, params) == jax.tree.map(lambda x: x.dtype, kept_shapes(CONFIG, dtype))
        assert where is None or jax.tree.map(lambda x: x.sharding, params) == shardings
    assert f"tensors as {dtype}" in str(report)


@pytest.mark.parametrize("sizes", [None, (1, 8, 1), (2, 2, 2)])
def test_an_edit_is_told_where_its_values_lie(monkeypatch, sizes):
    monkeypatch.setattr(kept, "stream", functools.partial(stream, piece_bytes=3000))
    whole, _ = load_params(STORIES, CONFIG)
    added = {path: np.random.default_rng(0).normal(size=leaf.shape) for path, leaf in flatten(whole).items()}

    def edit(path, layer, index, values):
        assert values.dtype == np.float32
        return values + (added[path] if layer is None else added[path][layer])[index].astype(np.float32)

    shardings = None if sizes is None else shardings_for(param_shapes(CONFIG), make_mesh(*sizes))[0]
    edited, _ = load_params(STORIES, CONFIG, shardings=shardings, edit=edit)
    for path, leaf in flatten(edited).items():
        np.testing.assert_array_equal(leaf, flatten(whole)[path] + added[path].astype(np.float32))


def test_layers_of_several_dtypes_are_read_together(tmp_path):
    tensors = published()
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name] = tensors[name].astype(np.float16)
    params, report = load_params(save(tmp_path, tensors), TINY)
    for layer in range(3):
        expected = tensors[f"model.layers.{layer}.mlp.up_proj.weight"].astype(np.float32).T
        np.testing.assert_array_equal(params["layers"]["mlp"]["up_proj"]["kernel"][layer], expected)
    assert report.dtypes == {"F32": 29, "F16": 1}


def test_a_folder_written_from_the_trunk_alone_lacks_its_prefix(tmp_path):
    tied = dataclasses.replace(TINY, tie_embeddings=True)
    tensors = published(tied)
    single = tmp_path / "trunk"
    single.mkdir()
    bare, _ = load_params(save(single, {name.removeprefix("model."): part for name, part in tensors.items()}), tied)
    jax.tree.map(np.testing.assert_array_equal, bare, load_params(save(tmp_path, tensors), tied)[0])


def test_an_untied_model_with_an_embedding_alone_lacks_its_head(tmp_path):
    tensors = published()
    del tensors["lm_head.weight"]
    with pytest.raises(ValueError, match="1 missing: lm_head.weight"):
        load_params(save(tmp_path, tensors), TINY)


def test_the_host_holds_less_than_two_of_the_largest_tensor_beside_the_parameters():
    found = measured_apart(0.1, 512)
    assert found["parameters_mib"] == pytest.approx(2 * found["checkpoint_mib"], rel=1e-3)  # float32 of bfloat16
    assert found["beyond_parameters_mib"] < 2 * found["largest_tensor_mib"]
    assert found["largest_tensor_mib"] < found["checkpoint_mib"] / 3


@pytest.mark.parametrize("sizes", [(8, 1, 1), (1, 8, 1), (2, 2, 2)])
def test_each_device_gets_its_slice(sizes):
    whole, _ = load_params(STORIES, CONFIG)
    shardings, _ = shardings_for(param_shapes(CONFIG), make_mesh(*sizes))
    parts, _ = load_params(STORIES, CONFIG, shardings=shardings)
    jax.tree.map(np.testing.assert_array_equal, parts, whole)
    assert jax.tree.map(lambda x: x.sharding, parts) == shardings


def test_shards_are_read_through_their_index(tmp_path):
    tensors = published()
    weight_map = {name: f"model-0000{1 + number % 2}-of-00002.safetensors" for number, name in enumerate(tensors)}
    for file in set(weight_map.values()):
        save_file({name: tensors[name] for name in tensors if weight_map[name] == file}, tmp_path / file)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    params, _ = load_params(tmp_path, TINY)
    single = tmp_path / "single"
    single.mkdir()
    jax.tree.map(np.testing.assert_array_equal, params, load_params(save(single, tensors), TINY)[0])


@pytest.mark.parametrize("name", ["../other.safetensors", "/etc/model.safetensors", "a/b.safetensors", "..\\x"])
def test_an_index_cannot_point_out_of_its_folder(tmp_path, name):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(ValueError, match="are not plain file names; shards must lie beside the index"):
        load_params(tmp_path, TINY)


def test_all_tensors_that_do_not_fit_are_reported_together(tmp_path):
    tensors = published()
    del tensors["model.layers.1.mlp.up_proj.weight"]
    tensors["model.layers.3.mlp.up_proj.weight"] = np.zeros((48, 32), np.float32)
    tensors["model.norm.weight"] = np.zeros((31,), np.float32)
    tensors["lm_head.weight"] = np.zeros((64, 32), np.int8)
    with pytest.raises(ValueError) as error:
        load_params(save(tmp_path, tensors), TINY)
    assert str(error.value).splitlines()[1:] == [
        "  1 missing: model.layers.1.mlp.up_proj.weight",
        "  1 unexpected: model.layers.3.mlp.up_proj.weight",
        "  1 of another shape: model.norm.weight has [31], expected [32]",
        "  1 of a dtype other than F32, BF16, F16: lm_head.weight has I8",
    ]


def test_a_long_list_of_tensors_is_cut_and_counted(tmp_path):
    with pytest.raises(ValueError, match="29 missing: .*, and 19 more"):
        load_params(save(tmp_path, {"model.norm.weight": np.zeros(32, np.float32)}), TINY)


def test_what_a_model_does_not_need_is_ignored_by_name(tmp_path):
    tied = dataclasses.replace(TINY, tie_embeddings=True)
    tensors = published(tied) | {
        "lm_head.weight": np.zeros((64, 32), np.float32),
        "model.layers.0.self_attn.rotary_emb.inv_freq": np.zeros(4, np.float32),
    }
    _, report = load_params(save(tmp_path, tensors), tied)
    assert set(report.ignored) == {"lm_head.weight", "model.layers.0.self_attn.rotary_emb.inv_freq"}
    assert "ignored lm_head.weight" in str(report)


def test_a_new_score_head_is_zero_or_drawn_by_the_key(tmp_path):
    save(tmp_path, published())
    params, report = load_params(tmp_path, SCALAR, new_score=True)
    np.testing.assert_array_equal(params["score"]["kernel"], np.zeros((1, 32)))
    assert (report.ignored, report.initialised) == (("lm_head.weight",), ("score/kernel with zeros",))
    drawn, report = load_params(tmp_path, SCALAR, new_score=True, key=jax.random.key(0))
    assert 0.1 < float(jnp.std(drawn["score"]["kernel"])) < 0.25  # 1 / sqrt(33) = 0.174
    assert report.initialised == ("score/kernel with normal(0, 0.1741)",)


def test_a_published_score_head_is_required_and_has_one_row(tmp_path):
    tensors = published(SCALAR)
    params, report = load_params(save(tmp_path, tensors), SCALAR)
    np.testing.assert_array_equal(params["score"]["kernel"], tensors["score.weight"])
    assert report.initialised == ()
    with pytest.raises(ValueError, match=r"score.weight has \[2, 32\], expected \[1, 32\]"):
        load_params(save(tmp_path, tensors | {"score.weight": np.zeros((2, 32), np.float32)}), SCALAR)
    del tensors["score.weight"]
    with pytest.raises(ValueError, match="1 missing: score.weight"):
        load_params(save(tmp_path, tensors), SCALAR)


def test_pickles_are_refused_with_advice(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ValueError, match=r"pickles can run code.*save_pretrained"):
        load_params(tmp_path, TINY)


def test_a_folder_without_weights_is_named(tmp_path):
    with pytest.raises(ValueError, match="has neither model.safetensors nor model.safetensors.index.json"):
        load_params(tmp_path, TINY)


def test_a_file_that_is_not_safetensors_is_named(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ValueError, match="model.safetensors is not a readable safetensors file .* Git LFS pointer"):
        load_params(tmp_path, TINY)
