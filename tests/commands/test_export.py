import json
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from transformers import AutoTokenizer

from jaxrlhf.checkpoint.state import Checkpoints
from jaxrlhf.commands import export
from jaxrlhf.commands.config import ExportConfig
from jaxrlhf.data.config import DataConfig
from jaxrlhf.data.templates import BUILT_IN
from jaxrlhf.models.folder import ADAPTER
from jaxrlhf.models.load import load_policy, load_scalar
from jaxrlhf.models.lora import merge
from jaxrlhf.models.lora_config import LoraConfig
from jaxrlhf.trainers import dpo, reward, sft
from jaxrlhf.trainers.run import Trained
from tests.trainers.small import config, demonstrations, pairs, start


def with_adapters(base, out) -> Trained:
    return dpo.run(config("dpo", out, model=str(base), lora=LoraConfig(rank=4), steps=1), dataset=pairs())


def forget_the_base(monkeypatch) -> None:
    """Makes checkpoints those of a version that recorded no base."""
    read = Checkpoints.record
    monkeypatch.setattr(Checkpoints, "record", lambda *asked: {**read(*asked), "base": None})


def halve(folder, name: str) -> None:
    """Other numbers in one tensor of a folder, which still is a model of the same shapes."""
    tensors = load_file(folder / "model.safetensors")
    tensors[name] = tensors[name] / 2
    save_file(tensors, folder / "model.safetensors")


def test_newest_checkpoint_is_the_export_of_the_run(policy, tmp_path):
    data = DataConfig(max_length=48, chat_template="hh")
    settings = config("dpo", tmp_path / "dpo", model=str(policy), data=data)
    run = dpo.run(settings, dataset=pairs(), eval_dataset=pairs(5))
    export.run(ExportConfig(run=str(run.folder), out=str(tmp_path / "out")))
    jax.tree.map(np.testing.assert_array_equal, load_policy(tmp_path / "out").params, run.model.params)

    templates = [AutoTokenizer.from_pretrained(f).chat_template for f in (tmp_path / "out", run.folder / "export")]
    assert templates == ["{{ bos_token }}" + BUILT_IN["hh"]] * 2

    cards = [(folder / "README.md").read_text() for folder in (tmp_path / "out", run.folder / "export")]
    assert cards[0] == cards[1]
    assert "in 4 steps" in cards[0] and "| eval/loss |" in cards[0] and "- rows in memory" in cards[0]

    export.run(ExportConfig(run=str(run.folder), out=str(tmp_path / "early"), step=2))
    early = load_policy(tmp_path / "early").params
    assert not np.array_equal(early["norm"]["scale"], run.model.params["norm"]["scale"])


def test_reward_model_keeps_its_head(policy, tmp_path):
    run = reward.run(config("reward", tmp_path / "reward", model=str(policy)), dataset=pairs(), eval_dataset=pairs(5))
    export.run(ExportConfig(run=str(run.folder), out=str(tmp_path / "out")))
    jax.tree.map(np.testing.assert_array_equal, load_scalar(tmp_path / "out").params, run.model.params)


def test_missing_step_and_folder_are_named(policy, tmp_path):
    with pytest.raises(ValueError, match=r"has no checkpoint 3; it has \[2, 4\]"):
        export.run(ExportConfig(run=str(policy), out=str(tmp_path / "out"), step=3))
    with pytest.raises(ValueError, match=r"is not the folder of a run: it has no config.yaml"):
        export.run(ExportConfig(run=str(tmp_path), out=str(tmp_path / "out")))


def test_adapters_are_written_alone_or_merged(policy, tmp_path):
    settings = config("dpo", tmp_path / "dpo", model=str(policy), lora=LoraConfig(rank=4, base="bfloat16"))
    run = dpo.run(settings, dataset=pairs())
    folder = str(run.folder)
    export.run(ExportConfig(run=folder, out=str(tmp_path / "adapter")))
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "adapter" / name).read_bytes() == (run.folder / "export" / name).read_bytes()

    export.run(ExportConfig(run=folder, out=str(tmp_path / "merged"), merge=True))
    assert (tmp_path / "merged" / "config.json").exists()
    folders = (tmp_path / "merged", run.folder / "export", policy / "export")
    merged, loaded, base = (load_policy(path).params for path in folders)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), merged, loaded)
    up, old = (params["layers"]["mlp"]["up_proj"]["kernel"] for params in (merged, base))
    assert np.abs(up - old).max() > 1e-3
    with pytest.raises(ValueError, match="dtype=bfloat16 has no effect on adapters, which are float32; set merge=true"):
        export.run(ExportConfig(run=folder, out=str(tmp_path / "x"), dtype="bfloat16"))


def test_merging_a_run_without_adapters_is_refused(policy, tmp_path):
    run = dpo.run(config("dpo", tmp_path / "dpo", model=str(policy), steps=1), dataset=pairs())
    with pytest.raises(ValueError, match="merge=true has no effect: .* trained the whole model, without adapters"):
        export.run(ExportConfig(run=str(run.folder), out=str(tmp_path / "out"), merge=True))


def test_adapters_are_not_put_over_another_base(policy, tmp_path, monkeypatch):
    base = tmp_path / "base"
    shutil.copytree(policy / "export", base)
    run = with_adapters(base, tmp_path / "dpo")
    halve(base, "model.layers.1.mlp.up_proj.weight")
    for merged in (False, True):
        with pytest.raises(ValueError, match=r"base is not the model that .*dpo was trained over: its config or weig"):
            export.run(ExportConfig(run=str(run.folder), out=str(tmp_path / "out"), merge=merged))
    forget_the_base(monkeypatch)
    export.run(ExportConfig(run=str(run.folder), out=str(tmp_path / "out"), merge=True))


def test_a_base_that_has_moved_can_be_named(policy, tmp_path):
    base, moved = tmp_path / "base", tmp_path / "moved"
    shutil.copytree(policy / "export", base)
    run = with_adapters(base, tmp_path / "dpo")
    base.rename(moved)
    settings = {"run": str(run.folder), "out": str(tmp_path / "out"), "merge": True}
    with pytest.raises(ValueError, match=r"dpo was started from .*/base, which is not there; give base=FOLDER, where"):
        export.run(ExportConfig(**settings))
    export.run(ExportConfig(**settings, base=str(moved)))
    up = load_policy(tmp_path / "out").params["layers"]["mlp"]["up_proj"]["kernel"]
    whole = merge(run.model.params, LoraConfig(rank=4).scale)
    np.testing.assert_allclose(up, whole["layers"]["mlp"]["up_proj"]["kernel"], atol=1e-6)

    export.run(ExportConfig(**settings | {"out": str(tmp_path / "alone"), "merge": False}, base=str(moved)))
    assert json.loads((tmp_path / "alone" / ADAPTER).read_text())["base_model_name_or_path"] == str(moved)


def test_a_base_is_found_from_another_working_directory(policy, tmp_path, monkeypatch):
    monkeypatch.chdir(policy.parent)
    with_adapters(policy.name, tmp_path / "dpo")
    monkeypatch.chdir(tmp_path)
    export.run(ExportConfig(run="dpo", out="out", merge=True))
    assert (tmp_path / "out" / "config.json").exists()
    forget_the_base(monkeypatch)
    with pytest.raises(ValueError, match=f"dpo was started from {policy.name}, which is not there; give base=FOLDER"):
        export.run(ExportConfig(run="dpo", out="again", merge=True))


def test_a_run_of_the_whole_model_needs_no_base(tmp_path):
    run = sft.run(config("sft", tmp_path / "sft", steps=1), model=start(), dataset=demonstrations())
    export.run(ExportConfig(run=str(run.folder), out=str(tmp_path / "out")))
    for name in ("config.json", "generation_config.json", "tokenizer.json", "model.safetensors"):
        assert (tmp_path / "out" / name).read_bytes() == (run.folder / "export" / name).read_bytes()
    shutil.rmtree(run.folder / "export")
    with pytest.raises(ValueError, match="sft was started from a model in memory; give base=FOLDER"):
        export.run(ExportConfig(run=str(run.folder), out=str(tmp_path / "again")))
