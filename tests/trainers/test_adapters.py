"""Training adapters over a base: what is trained, what is kept, and what comes out."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrlhf.checkpoint.export import export_hf
from jaxrlhf.checkpoint.manifest import read_manifest
from jaxrlhf.models.lora import merge
from jaxrlhf.models.lora_config import LoraConfig
from jaxrlhf.sharding.mesh import make_mesh
from jaxrlhf.trainers import dpo, ppo
from jaxrlhf.trainers.run import Run
from jaxrlhf.trainers.start import Start, load_start, scalar_start
from tests.trainers.small import (
    METHODS,
    always_one,
    assert_same_params,
    config,
    metrics,
    pairs,
    prompts,
    start,
    train,
)

LORA = LoraConfig(rank=4)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    given = start()
    return export_hf(tmp_path_factory.mktemp("base") / "model", given.params, given.config, tokenizer=given.tokenizer)


def same_function(left: Start, right: Start) -> bool:
    """Whether two models are equal but for rounding, once adapters are merged."""
    params = [s.params if s.lora is None else merge(s.params, s.lora.scale) for s in (left, right)]
    return all(jax.tree.leaves(jax.tree.map(lambda a, b: np.allclose(a, b, atol=1e-6), *params)))


@pytest.mark.parametrize(
    ("method", "lora"),
    [("ppo_options", LoraConfig(rank=4, base="int8")), ("dpo", LoraConfig(rank=4, dropout=0.2, base="bfloat16"))],
)
def test_resumed_run_equals_unbroken_one_and_keeps_adapters_alone(method, lora, tmp_path, monkeypatch):
    whole = train(method, tmp_path / "whole", lora=lora)
    save = Run.save

    def save_and_die(self: Run, step: int, *arguments: Any) -> None:
        save(self, step, *arguments)
        if step == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Run, "save", save_and_die)
        train(method, tmp_path / "broken", lora=lora)
    resumed = train(method, tmp_path / "broken", lora=lora)
    assert_same_params(whole.model, resumed.model)
    assert metrics(tmp_path / "broken") == metrics(tmp_path / "whole")
    names = [name for name in read_manifest(tmp_path / "whole" / "checkpoints" / "4")["leaves"] if "params" in name]
    assert names and all(name.endswith(("lora_a", "lora_b", "score/kernel")) for name in names)


def test_another_base_is_refused_when_a_run_is_resumed(tmp_path):
    train("sft", tmp_path / "run", lora=LORA)
    other = start()
    other.params["norm"]["scale"] = 2 * other.params["norm"]["scale"]
    with pytest.raises(ValueError, match="was trained against another base, reference or reward model"):
        train("sft", tmp_path / "run", model=other, lora=LORA, steps=6)


@pytest.mark.parametrize("method", ["kwise", "kto", "grpo", "rejection"])
def test_every_method_trains_adapters_and_leaves_the_base(method, tmp_path, caplog):
    caplog.set_level("INFO", "jaxrlhf")
    given = scalar_start(start()) if method == "kwise" else start()
    run = train(method, tmp_path / "run", model=given, lora=LORA)
    assert run.model.lora == LORA
    own = 2 * 4 * (2 * (16 + 16) + 2 * (16 + 8) + 3 * (16 + 32)) + (16 if method == "kwise" else 0)
    total = sum(leaf.size for leaf in jax.tree.leaves(run.model.params))
    what = "reward model" if method == "kwise" else "policy"
    assert f"{what}: trains {own:,} of {total:,} parameters" in caplog.text
    up = run.model.params["layers"]["mlp"]["up_proj"]
    np.testing.assert_array_equal(up["kernel"], given.params["layers"]["mlp"]["up_proj"]["kernel"])
    assert jnp.abs(up["lora_b"]).max() > 1e-3
    files = {file.name for file in (tmp_path / "run" / "export").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= files
    options = json.loads((tmp_path / "run" / "export" / "adapter_config.json").read_text())
    assert options["base_model_name_or_path"] is None  # it was in memory
    assert options["task_type"] == ("SEQ_CLS" if method == "kwise" else "CAUSAL_LM")


@pytest.mark.parametrize("method", METHODS)
def test_targets_that_match_nothing_stop_a_run_before_its_data(method, tmp_path):
    lora = LoraConfig(rank=4, targets=("c_attn",))
    with pytest.raises(ValueError, match=r"^lora.targets: c_attn matches none of") as error:
        train(method, tmp_path / "run", lora=lora)
    assert not any("loader" in place.name for place in error.traceback)
    assert not any("jax/_src" in str(place.path) for place in error.traceback)


def test_dpo_begins_at_the_reference_and_learns(tmp_path):
    settings = config("dpo", tmp_path / "run", lora=LORA, steps=16, beta=1.0)
    dpo.run(settings, model=start(), dataset=pairs(), eval_dataset=pairs(5))
    losses = [line["eval/loss"] for line in metrics(tmp_path / "run") if "eval/loss" in line]
    np.testing.assert_allclose(losses[0], np.log(2), rtol=1e-6)
    assert losses[-1] < 0.4


def test_dropout_is_of_training_alone(tmp_path):
    runs = [train("sft", tmp_path / str(d), lora=LoraConfig(rank=4, dropout=d)) for d in (0.0, 0.5)]
    first, second = (metrics(run.folder) for run in runs)
    assert first[0] == second[0] and first[0]["eval/loss"] > 0  # before the first step
    assert first[2]["loss"] != second[2]["loss"]


@pytest.mark.parametrize("method", ["ppo", "grpo"])
def test_dropout_is_refused_where_the_update_must_be_of_what_sampled(method, tmp_path):
    with pytest.raises(ValueError, match="lora.dropout=0.1: the update would be of another network than the one that"):
        config(method, tmp_path, lora=LoraConfig(rank=4, dropout=0.1))
    config("rejection", tmp_path, lora=LoraConfig(rank=4, dropout=0.1))


def test_a_run_of_adapters_is_a_model_for_the_next_one(base, tmp_path):
    first = dpo.run(config("dpo", tmp_path / "first", model=str(base), lora=LORA), dataset=pairs())
    loaded = load_start(str(first.folder), make_mesh())
    assert loaded.lora is None and same_function(loaded, first.model)
    assert not same_function(loaded, start())

    settings = config("dpo", tmp_path / "second", model=str(first.folder), lora=LORA)
    second = dpo.run(settings, dataset=pairs())
    assert metrics(second.folder)[0]["loss"] == pytest.approx(np.log(2))  # the reference is the first one's result
    assert same_function(load_start(str(second.folder), make_mesh()), second.model)
    options = json.loads((second.folder / "export" / "adapter_config.json").read_text())
    assert options["base_model_name_or_path"] == str(base.resolve())  # PEFT has one adapter over a whole model
    assert (options["r"], options["lora_alpha"]) == (8, 8)


def test_a_model_in_memory_with_adapters_is_merged_where_a_run_starts_from_it(tmp_path):
    first = train("sft", tmp_path / "first", lora=LORA)
    second = train("sft", tmp_path / "second", model=first.model, optim=config("sft", tmp_path).optim, steps=1)
    assert second.model.lora is None
    assert jax.tree.structure(second.model.params) == jax.tree.structure(start().params)
    before, after = (metrics(run.folder) for run in (first, second))
    assert before[-1]["eval/loss"] == pytest.approx(after[0]["eval/loss"], abs=1e-5)


def played(monkeypatch: pytest.MonkeyPatch, settings: Any, **given: Any) -> Any:
    """What PPO would play with, without playing: the game and the first states."""
    found = []

    def keep(game: Any, states: Any, *others: Any, **options: Any) -> Any:
        found.append((game, states))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ppo, "improve", keep)
        ppo.run(settings, model=start(), dataset=prompts(), rewards=[always_one], **given)
    return found[0]


def test_critic_and_reward_model_are_one_copy(tmp_path, monkeypatch):
    scorer = scalar_start(start())
    scorer.params["score"]["kernel"] = jnp.full((1, 16), 0.5)
    game, states = played(monkeypatch, config("ppo", tmp_path / "run", lora=LORA), reward_model=scorer)
    assert set(game.frozen) == {"base", "scorer"}
    assert game.bases == {"policy": "base", "reference": "base", "critic": "scorer"}
    critic = states.models["critic"].params
    np.testing.assert_array_equal(critic["score"]["kernel"], scorer.params["score"]["kernel"])
    # What is trained is donated, and must not be what is frozen.
    ours, theirs = (tree["score"]["kernel"].addressable_data(0) for tree in (critic, game.frozen["scorer"]))
    assert ours.unsafe_buffer_pointer() != theirs.unsafe_buffer_pointer()
    policy = states.models["policy"].params["layers"]["mlp"]["up_proj"]["lora_a"]
    assert not np.array_equal(policy, critic["layers"]["mlp"]["up_proj"]["lora_a"])


def test_the_log_tells_policy_and_critic_apart(tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO", "jaxrlhf")
    played(monkeypatch, config("ppo", tmp_path / "run", lora=LORA))
    assert "policy: trains " in caplog.text and "critic: trains " in caplog.text


def test_a_critic_without_a_reward_model_stands_over_the_base(tmp_path, monkeypatch):
    game, states = played(monkeypatch, config("ppo", tmp_path / "run", lora=LORA))
    assert set(game.frozen) == {"base"} and set(game.bases.values()) == {"base"}
    assert not states.models["critic"].params["score"]["kernel"].any()


def test_a_critic_and_a_reference_that_are_named_are_models_of_their_own(base, tmp_path, monkeypatch):
    lora = LoraConfig(rank=4, base="bfloat16")
    settings = config("ppo", tmp_path / "run", lora=lora, critic=str(base), reference=str(base))
    game, _ = played(monkeypatch, settings)
    assert set(game.frozen) == {"base", "reference", "under_critic"}
    assert game.bases == {"policy": "base", "critic": "under_critic"}
    assert {leaf.dtype for leaf in jax.tree.leaves(game.frozen)} == {jnp.dtype("bfloat16")}
