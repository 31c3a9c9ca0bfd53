"""From data to the loaders of a run."""

import json
import logging

import pytest

from jaxrlhf.data.config import DataConfig
from jaxrlhf.trainers import ppo, rows, sft
from jaxrlhf.trainers.config import OptimConfig
from jaxrlhf.trainers.rollout_config import RolloutConfig
from tests.trainers.small import (
    config,
    demonstrations,
    mentions,
    metrics,
    prompts,
    start,
    train,
)


def test_what_is_wrong_with_pretraining_texts_names_their_keys(tmp_path):
    given = {"model": start(), "dataset": prompts(), "eval_dataset": prompts(5), "rewards": [mentions]}
    message = r"^ptx.dataset, whose data.\* keys are ptx.data.\*: row 1: columns a fit no layout.*in data.columns"
    with pytest.raises(ValueError, match=message):
        ppo.run(config("ppo_options", tmp_path / "run"), ptx_dataset=[{"a": "b"}], **given)


def test_evaluation_without_data_is_refused(tmp_path):
    with pytest.raises(ValueError, match="eval_every: no effect without eval_dataset"):
        sft.run(config("sft", tmp_path / "run", eval_every=2), model=start(), dataset=demonstrations())


def test_no_data_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no data to train on; set dataset=PATH"):
        sft.run(config("sft", tmp_path / "run"), model=start())


def test_rows_longer_than_the_model_has_positions_are_refused(tmp_path):
    long = [{"text": "the room was clean . " * 20}]
    with pytest.raises(ValueError, match="the longest sequence has 102 tokens, and the model 64 positions; lower data"):
        sft.run(config("sft", tmp_path / "run", data=DataConfig(max_length=128)), model=start(), dataset=long * 8)
    rollout = RolloutConfig(max_new_tokens=60, answers=2)
    with pytest.raises(ValueError, match="the model 64 positions; lower rollout.max_new_tokens or data.max_prompt"):
        train("ppo", tmp_path / "ppo", rollout=rollout)


@pytest.mark.parametrize("method", ["dpo", "reward", "kwise"])
def test_answers_that_share_the_row_of_their_prompt_teach_the_same(method, tmp_path):
    def run(shared):
        data = DataConfig(max_length=48, share_prompts=shared)
        optim = OptimConfig(learning_rate=1e-2, schedule="constant", eps=1e-4)
        train(method, tmp_path / str(shared), data=data, optim=optim)
        return metrics(tmp_path / str(shared))

    for together, apart in zip(run(True), run(False), strict=True):
        assert together == pytest.approx(apart, rel=2e-3, abs=1e-4)


def test_answers_have_a_row_each_where_the_attention_needs_that(monkeypatch, caplog, tmp_path):
    monkeypatch.setattr(rows, "why_not_share", lambda config, compute, tokens: f"{compute.attention}, {tokens}")
    with caplog.at_level(logging.INFO, logger="jaxrlhf"):
        train("dpo", tmp_path / "run")
    assert any("training data: answers have a row each (auto, " in line for line in caplog.messages)


def test_bad_rows_that_are_skipped_are_kept_in_the_folder(tmp_path):
    rows = [*demonstrations(40), {"prompt": "the room", "completion": 7}]
    data = DataConfig(max_length=48, bad_rows="skip")
    sft.run(config("sft", tmp_path / "run", steps=1, data=data), model=start(), dataset=rows)
    (line,) = (tmp_path / "run" / "rejected_training_rows.jsonl").read_text().splitlines()
    assert json.loads(line)["row"] == rows[-1]


def test_data_that_are_named_and_given_are_refused(tmp_path):
    settings = config("sft", tmp_path / "run", dataset="other.jsonl")
    with pytest.raises(ValueError, match="rows in memory and dataset=other.jsonl"):
        sft.run(settings, model=start(), dataset=demonstrations())
