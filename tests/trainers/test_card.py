import dataclasses
import math

import jaxrlhf
from jaxrlhf.data.config import DatasetConfig
from jaxrlhf.trainers.card import make_card, recorded_card
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


def test_a_record_of_an_earlier_version_has_no_card():
    card = make_card(CONFIG, 1, 1, {})
    assert recorded_card({"card": dataclasses.asdict(card)}) == card
    assert recorded_card({"step": 3}) is None
