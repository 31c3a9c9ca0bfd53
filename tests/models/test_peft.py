import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxrlhf.checkpoint.export import export_hf
from jaxrlhf.checkpoint.peft import export_adapter
from jaxrlhf.models.folder import read_config
from jaxrlhf.models.load import load_policy, load_scalar
from jaxrlhf.models.lora import init_adapters, merge
from jaxrlhf.models.lora_config import LoraConfig
from jaxrlhf.models.peft import WEIGHTS, read_adapter, read_adapters, whole_name
from jaxrlhf.ops.trees import overlay
from jaxrlhf.sharding.mesh import make_mesh
from tests.models.tiny import SCALAR, TINY, random_params

LORA = LoraConfig(rank=2, targets=("(q|v)_proj", "down_proj"))
FUSED = dataclasses.replace(TINY, model_type="phi3")


def adapters(config: Any = TINY, lora: LoraConfig = LORA) -> Any:
    """Adapters that add something, on the host."""
    fresh = init_adapters(config, lora, jax.random.key(0))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: (leaf + 0.2 * rng.standard_normal(leaf.shape)).astype(np.float32), fresh)


def added(tree: Any, scale: float) -> dict[str, np.ndarray]:
    """What adapters add to each matrix."""
    if "lora_a" in tree:
        return {"": scale * np.asarray(tree["lora_a"]) @ np.asarray(tree["lora_b"])}
    return {f"{name}/{path}": delta for name, part in tree.items() for path, delta in added(part, scale).items()}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return export_hf(tmp_path / "base", random_params(TINY), TINY)


@pytest.fixture
def folder(tmp_path: Path, base: Path) -> Path:
    return export_adapter(tmp_path / "adapter", adapters(), TINY, LORA, base=str(base))


def rewrite(folder: Path, **options: Any) -> Path:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | options))
    return folder


@pytest.mark.parametrize("config", [TINY, FUSED], ids=["llama", "phi3"])
@pytest.mark.parametrize("rslora", [False, True])
def test_what_is_written_adds_the_same_when_it_is_read(config, rslora, tmp_path):
    lora = dataclasses.replace(LORA, alpha=3.0, rslora=rslora)
    written = adapters(config, lora)
    read = read_adapter(export_adapter(tmp_path / "a", written, config, lora, base="x"), config)
    expected, found = added(written, lora.scale), added(read, 1.0)
    assert {path for path, delta in found.items() if delta.any()} == set(expected)
    for path, delta in expected.items():
        np.testing.assert_allclose(found[path], delta, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_a_folder_of_an_adapter_is_a_model(dtype, folder, base):
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    loaded = load_policy(folder, mesh=mesh, dtype=dtype)
    assert read_config(folder) == loaded.config == TINY
    assert f"added the adapter {folder}" in str(loaded.report)
    expected = merge(overlay(load_policy(base).params, adapters()), LORA.scale)
    if dtype == "float32":
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), loaded.params, expected)
    else:  # rounded once, after the adapter was added
        kept = loaded.params["layers"]["self_attn"]["q_proj"]
        scale = np.abs(expected["layers"]["self_attn"]["q_proj"]["kernel"]).max(axis=1) / 127
        np.testing.assert_allclose(kept["kernel_scale"], scale, rtol=1e-5)


def test_adapters_stand_over_adapters(folder, tmp_path, base):
    outer = export_adapter(tmp_path / "outer", adapters(), TINY, LORA, base=str(folder))
    assert whole_name(outer, "outer") == str(base) and len(read_adapters(outer, TINY)) == 2
    expected = merge(overlay(load_policy(base).params, adapters()), 2 * LORA.scale)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), load_policy(outer).params, expected)
    with pytest.raises(ValueError, match="stands over this adapter itself"):
        load_policy(rewrite(folder, base_model_name_or_path=str(outer)))


def test_a_reward_model_brings_its_head(tmp_path, base):
    given = {**adapters(SCALAR), "score": {"kernel": np.full((1, 32), 0.5, np.float32)}}
    folder = export_adapter(tmp_path / "adapter", given, SCALAR, LORA, base=str(base))
    assert json.loads((folder / "adapter_config.json").read_text())["modules_to_save"] == ["score"]
    assert read_config(folder).scalar_head
    loaded = load_scalar(folder, mesh=make_mesh(), dtype="bfloat16")
    assert loaded.report.initialised == () and (loaded.params["score"]["kernel"] == 0.5).all()
    tensors = load_file(folder / WEIGHTS)
    del tensors["base_model.model.score.weight"]
    save_file(tensors, folder / WEIGHTS)
    with pytest.raises(ValueError, match=f"{WEIGHTS} is of a reward model, and has no score.weight"):
        load_scalar(folder)


def test_a_policy_can_become_a_reward_model(folder):
    loaded = load_scalar(folder)
    assert loaded.report.initialised == ("score/kernel with zeros",)
    np.testing.assert_array_equal(
        loaded.params["layers"]["self_attn"]["q_proj"]["kernel"],
        load_policy(folder).params["layers"]["self_attn"]["q_proj"]["kernel"],
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"base_model_name_or_path": None},
            "base_model_name_or_path is None, so what the adapter stands over",
        ),
        (
            {"base_model_name_or_path": "./gone"},
            r"base_model_name_or_path: \./gone: .*if it has moved, write there",
        ),
        ({"peft_type": "IA3"}, "peft_type='IA3', where only 'LORA' is supported"),
        ({"use_dora": True, "bias": "all"}, "bias='all', where only 'none' is supported; use_dora=True is not"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa', where only"),
        ({"modules_to_save": ["embed_tokens", "score"]}, "modules_to_save has embed_tokens, where only score is"),
        ({"loftq_config": {"loftq_bits": 4}, "layer_replication": [[0, 2]]}, "loftq_config=.*; layer_replication="),
        ({"alpha_pattern": {"(q_proj": 2}}, "alpha_pattern=.*, where an object from regular expressions to numbers is"),
        (
            {"peft_type": "IA3", "an_option_of_tomorrow": 1},
            r"where only 'LORA' is supported; merge it with PEFT \(merge_and_unload\), and give the whole model$",
        ),
        ({"use_dora": True}, r"use_dora=True is not supported; merge it with PEFT"),
        (
            {"lora_alpha": "8", "alpha_pattern": {"q_proj": None}},
            "lora_alpha='8' is no number; q_proj=None is",
        ),
        ({"an_option_of_tomorrow": 1}, "an_option_of_tomorrow=1 is not supported"),
    ],
)
def test_what_is_not_supported_is_named(options, message, folder):
    with pytest.raises(ValueError, match=message):
        load_policy(rewrite(folder, **options))


def test_options_that_are_off_are_no_obstacle(folder):
    load_policy(rewrite(folder, use_dora=False, layer_replication=None, loftq_config={}, an_option_of_tomorrow=None))


def test_tensors_that_do_not_fit_are_named_together(folder):
    tensors = load_file(folder / WEIGHTS)
    q, v = (f"base_model.model.model.layers.0.self_attn.{name}.lora_" for name in ("q_proj", "v_proj"))
    del tensors[f"{q}B.weight"]
    tensors[f"{v}A.weight"] = tensors[f"{v}A.weight"][:, :5]
    tensors["base_model.model.model.layers.0.mlp.gate.lora_A.weight"] = np.zeros((2, 32), np.float32)
    save_file(tensors, folder / WEIGHTS)
    with pytest.raises(ValueError) as error:
        load_policy(folder)
    for line in (
        "1 unexpected: model.layers.0.mlp.gate.lora_A.weight",
        "1 missing: model.layers.0.self_attn.q_proj.lora_B.weight",
        "1 of another shape than the model's: model.layers.0.self_attn.v_proj with (2, 5) and (16, 2)",
    ):
        assert line in str(error.value)


@pytest.mark.parametrize(
    ("name", "module"),
    [("lm_head.base_layer.weight", "lm_head"), ("model.embed_tokens.lora_embedding_A", "model.embed_tokens")],
)
def test_adapters_of_what_is_not_in_a_block_are_named(name, module, folder):
    save_file(
        load_file(folder / WEIGHTS) | {f"base_model.model.{name}": np.zeros((2, 32), np.float32)}, folder / WEIGHTS
    )
    with pytest.raises(ValueError, match=f"adapters of {module} are not supported; merge it with PEFT"):
        load_policy(folder)


def test_adapters_that_stop_half_way_are_refused_unless_the_config_says_so(folder):
    tensors = {name: leaf for name, leaf in load_file(folder / WEIGHTS).items() if ".layers.2." not in name}
    save_file(tensors, folder / WEIGHTS)
    with pytest.raises(ValueError, match=r"none has model.layers.2.self_attn.q_proj, .*is the file whole\?"):
        load_policy(folder)
    read = read_adapter(rewrite(folder, layers_to_transform=[0, 1]), TINY)
    assert [bool(layer.any()) for layer in read["layers"]["mlp"]["down_proj"]["lora_b"]] == [True, True, False]


def test_a_broken_file_is_named(folder):
    (folder / WEIGHTS).write_bytes(b"no tensors")
    with pytest.raises(ValueError, match=f"{WEIGHTS} is not a readable safetensors file"):
        load_policy(folder)
