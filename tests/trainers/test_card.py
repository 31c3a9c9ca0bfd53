import dataclasses
import json
import math

import jaxrlhf
from jaxrlhf.data.config import DatasetConfig
from jaxrlhf.models.lora_config import LoraConfig
from jaxrlhf.trainers.card import make_card, recorded_card, root_of
from jaxrlhf.trainers.config import DPOConfig, OptimConfig, RewardConfig
from jaxrlhf.trainers.ppo_config import PPOConfig, PTXConfig

CONFIG = DPOConfig(
    out="runs/dpo",
    model="owner/name",
    datasets=(DatasetConfig(path="a.jsonl"), DatasetConfig(path="b.jsonl")),
    beta=0.3,
    optim=OptimConfig(learning_rate=1e-6, warmup_steps=5),
    log_every=3,
)


def test_a_card_holds_what_is_known_of_a_run():
    card = make_card(CONFIG, 100, 7, {"loss": 0.5, "time/iteration_s": 2.0, "grad_norm": math.nan, "eval/loss": 0.25})
    assert (card.method, card.base, card.scorer, card.rows, card.steps) == ("dpo", "owner/name", False, 100, 7)
    assert card.data == ("a.jsonl", "b.jsonl")
    assert card.metrics == {"loss": 0.5, "eval/loss": 0.25}
    assert card.version == jaxrlhf.__version__


def test_settings_are_those_that_always_matter_and_those_that_were_changed():
    assert make_card(CONFIG, 1, 1, {}).settings == {
        "batch_size": 32,
        "optim.learning_rate": 1e-6,
        "optim.schedule": "linear",
        "data.max_length": 1024,
        "seed": 0,
        "beta": 0.3,
        "optim.warmup_steps": 5,
    }


def test_a_reward_model_is_a_scorer_and_pretraining_texts_are_data():
    assert make_card(RewardConfig(out="x"), 1, 1, {}).scorer
    config = PPOConfig(out="x", dataset="prompts.jsonl", ptx=PTXConfig(dataset="texts.jsonl"))
    assert make_card(config, 1, 1, {}).data == ("prompts.jsonl", "texts.jsonl")


def test_settings_of_adapters_are_always_said():
    config = dataclasses.replace(CONFIG, lora=LoraConfig(rank=8, base="int8"))
    found = {key: value for key, value in make_card(config, 1, 1, {}).settings.items() if key.startswith("lora.")}
    assert found == {"lora.rank": 8, "lora.alpha": 16, "lora.targets": [".*_proj"], "lora.base": "int8"}
    assert not any(key.startswith("lora.") for key in make_card(CONFIG, 1, 1, {}).settings)


def record(run, base):
    """A checkpoint's record in the folder of a run."""
    (run / "checkpoints" / "3").mkdir(parents=True)
    (run / "checkpoints" / "3" / "record.json").write_text(json.dumps({"step": 3, **base}))
    return str(run)


def test_the_base_is_at_the_root_of_runs_and_adapters(tmp_path):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "owner/name"}))
    first = record(tmp_path / "sft", {"base": {"name": str(adapter), "files": "0"}})
    second = record(tmp_path / "dpo", {"base": {"name": f"{first}/export", "files": "0"}})
    assert root_of(second) == root_of(f"{second}/export") == root_of(str(adapter)) == "owner/name"
    assert make_card(dataclasses.replace(CONFIG, model=second), 1, 1, {}).base == "owner/name"


def test_a_root_that_is_unknown_is_the_last_that_is_known(tmp_path):
    assert root_of("") == "" and root_of("owner/name") == "owner/name"
    assert root_of(record(tmp_path / "memory", {"base": None})) == ""
    earlier = record(tmp_path / "earlier", {})
    assert root_of(earlier) == earlier
    itself = record(tmp_path / "itself", {"base": {"name": str(tmp_path / "itself"), "files": "0"}})
    assert root_of(itself) == itself


def test_a_record_of_an_earlier_version_has_no_card():
    card = make_card(CONFIG, 1, 1, {})
    assert recorded_card({"card": dataclasses.asdict(card)}) == card
    assert recorded_card({"step": 3}) is None
