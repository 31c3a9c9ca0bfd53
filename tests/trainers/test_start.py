"""What a run starts from."""

import dataclasses

import jax
import pytest

from jaxrlhf.data.config import DataConfig
from jaxrlhf.models.lora_config import LoraConfig
from jaxrlhf.sharding.mesh import make_mesh
from jaxrlhf.trainers import dpo, ppo, sft
from jaxrlhf.trainers.start import load_start, scalar_start
from tests.trainers.small import (
    always_one,
    config,
    demonstrations,
    metrics,
    pairs,
    prompts,
    samples,
    start,
    train,
)


def test_no_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no model is named"):
        sft.run(config("sft", tmp_path / "run"), dataset=demonstrations())


def test_reference_of_another_shape_is_refused(tmp_path):
    other = start()
    other = dataclasses.replace(other, config=dataclasses.replace(other.config, norm_eps=0.5))
    with pytest.raises(ValueError, match="the reference is another model than the policy"):
        dpo.run(config("dpo", tmp_path / "run"), model=start(), reference=other, dataset=pairs())


def test_a_reference_that_is_the_base_already_is_refused(tmp_path):
    train("sft", tmp_path / "sft", steps=1)
    named = {"model": str(tmp_path / "sft"), "reference": str(tmp_path / "sft" / "export")}
    with pytest.raises(ValueError, match=r"reference=.*export is the model itself.*; leave reference out"):
        dpo.run(config("dpo", tmp_path / "run", lora=LoraConfig(rank=2), **named), dataset=pairs())


def test_a_model_that_could_not_be_exported_is_refused_before_the_first_step(tmp_path):
    odd = start()
    odd = dataclasses.replace(odd, config=dataclasses.replace(odd.config, embedding_scale=2.0))  # Llama has no word
    with pytest.raises(ValueError, match="model could not be exported: .*'llama' cannot say embedding_scale=2.0"):
        sft.run(config("sft", tmp_path / "run"), model=odd, dataset=demonstrations())
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_stage_starts_from_the_folder_of_another(tmp_path):
    first = train("sft", tmp_path / "sft")
    settings = config("dpo", tmp_path / "dpo", model=str(tmp_path / "sft"), steps=1)
    dpo.run(settings, dataset=pairs(), eval_dataset=pairs(5))
    held_out, step, _ = metrics(tmp_path / "dpo")
    assert held_out["eval/loss"] == pytest.approx(0.693147, abs=1e-6)  # policy and reference are equal
    assert step["rewards/margins"] == pytest.approx(0.0, abs=1e-5)
    assert first.folder == tmp_path / "sft"


def test_unfinished_run_is_no_model(tmp_path):
    (tmp_path / "sft").mkdir()
    (tmp_path / "sft" / "metrics.jsonl").touch()
    with pytest.raises(ValueError, match="is a run that has no export yet"):
        sft.run(config("sft", tmp_path / "next", model=str(tmp_path / "sft")), dataset=demonstrations())


def test_a_model_with_the_wrong_head_is_refused(tmp_path):
    scorer = scalar_start(start())
    with pytest.raises(ValueError, match="model is a reward model, and a language model is needed here"):
        sft.run(config("sft", tmp_path / "run"), model=scorer, dataset=demonstrations())
    with pytest.raises(ValueError, match="reward_model is a language model, and a reward model is needed here"):
        ppo.run(config("ppo", tmp_path / "run"), model=start(), reward_model=start(), dataset=prompts())


def test_a_reward_model_in_memory_keeps_its_head(tmp_path):
    first = train("reward", tmp_path / "first")
    train("reward", tmp_path / "next", model=first.model, steps=1)
    before = [line["eval/loss"] for line in metrics(tmp_path / "first") if "eval/loss" in line][-1]
    assert metrics(tmp_path / "next")[0]["eval/loss"] == pytest.approx(before, rel=1e-5)


def test_names_in_place_of_models_and_single_rewards_are_refused(tmp_path):
    with pytest.raises(TypeError, match="model is 'runs/sft'; in memory it is a trainers.start.Start"):
        sft.run(config("sft", tmp_path / "run"), model="runs/sft", dataset=demonstrations())
    with pytest.raises(TypeError, match=r"rewards=\[always_one\]"):
        ppo.run(config("ppo", tmp_path / "run"), model=start(), dataset=prompts(), rewards=always_one)


def test_models_on_one_device_are_spread_over_all(tmp_path):
    one = jax.devices()[0]
    model = dataclasses.replace(start(), params=jax.device_put(start().params, one))
    done = sft.run(config("sft", tmp_path / "run", steps=1), model=model, dataset=demonstrations())
    assert len(jax.tree.leaves(done.model.params)[0].sharding.device_set) == 8


def test_the_chat_template_of_the_data_is_exported(tmp_path):
    conversation = [{"role": "user", "content": "the room ?"}, {"role": "assistant", "content": "it was clean ."}]
    data = DataConfig(max_length=64, chat_template="hh")
    settings = config("sft", tmp_path / "sft", steps=1, data=data)
    sft.run(settings, model=start(), dataset=[{"messages": conversation}] * 8)
    exported = load_start(str(tmp_path / "sft"), make_mesh())
    assert "Human: " in exported.tokenizer.apply_chat_template(conversation, tokenize=False)
    asked = config("ppo", tmp_path / "ppo", steps=1, model=str(tmp_path / "sft"))
    ppo.run(asked, dataset=[{"prompt": conversation[:1]}] * 8, rewards=[always_one])
    assert "Human: " in samples(tmp_path / "ppo")[0]["prompt"]
