import json
import logging
import math

import pytest

from jaxrlhf.commands import evaluate
from jaxrlhf.commands.config import EvaluateConfig, SamplingConfig
from jaxrlhf.data.config import DataConfig
from jaxrlhf.models.config import ComputeConfig
from tests.commands.chains import chain_folder
from tests.trainers.small import demonstrations, metrics, pairs, prompts, rankings

DATA = DataConfig(max_length=48)


def test_perplexity_is_that_of_the_run(policy, write):
    config = EvaluateConfig(
        measure="perplexity",
        model=str(policy),
        dataset=write("rows.jsonl", demonstrations(5, seed=9)),
        batch_size=8,
        data=DATA,
    )
    result = evaluate.run(config)
    expected = [line["eval/loss"] for line in metrics(policy) if "eval/loss" in line][-1]
    assert result["loss"] == pytest.approx(expected, rel=1e-5)
    assert result["perplexity"] == pytest.approx(math.exp(expected), rel=1e-5)


def test_accuracy_is_that_of_the_run_and_the_file_holds_it(scorer, write, tmp_path):
    config = EvaluateConfig(
        measure="accuracy",
        model=str(scorer),
        dataset=write("rows.jsonl", rankings(5)),
        batch_size=8,
        data=DATA,
        out=str(tmp_path / "result.json"),
    )
    result = evaluate.run(config)
    expected = [line["eval/accuracy"] for line in metrics(scorer) if "eval/accuracy" in line][-1]
    assert result["accuracy"].value == pytest.approx(expected, abs=1e-6)
    written = json.loads((tmp_path / "result.json").read_text())
    assert written["accuracy"]["count"] == result["accuracy"].count == 6 + 10 + 15 + 6 + 10


def test_length_baseline_on_pairs(scorer, write):
    """The rejected answers are the longer ones here, but for chance: the baseline must be below one half."""
    rows = [
        {"prompt": row["prompt"], "chosen": row["chosen"], "rejected": row["chosen"] + " thanks !"} for row in pairs(9)
    ]
    config = EvaluateConfig(
        measure="accuracy", model=str(scorer), dataset=write("rows.jsonl", rows), batch_size=8, data=DATA
    )
    assert evaluate.run(config)["longer_is_better"].value == 0.0


def test_win_rate_against_itself_is_one_half(policy, scorer, write, caplog, capsys):
    caplog.set_level("INFO")
    config = EvaluateConfig(
        measure="win_rate",
        model=str(policy),
        against=str(policy),
        reward_model=str(scorer),
        dataset=write("rows.jsonl", prompts(9)),
        batch_size=8,
        sampling=SamplingConfig(max_new_tokens=6),
        data=DATA,
    )
    result = evaluate.run(config)
    assert result["win_rate"].value == 0.5
    assert result["ties"] == result["prompts"] == 9
    assert result["score"] == result["score_of_other"] != 0.0
    printed = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert (printed["ties"], printed["score"]) == ("9", f"{result['score']:.4g}")
    assert [message[:21] for message in caplog.messages].count("9 examples of 9 rows;") == 1


REWARDS = """
def long(prompts, completions, **columns):
    return [len(text.split()) for text in completions]

def mentions(prompts, completions, wanted):
    return [float(word in text) for word, text in zip(wanted, completions)]

def sometimes(prompts, completions, wanted):
    return [1.0 if word == "room" else None for word in wanted]
"""


@pytest.mark.parametrize(
    ("reward", "value", "low", "high"),
    [("long", 1.0, 0.70085, 1.0), ("mentions", 4 / 9, 0.18878, 0.73335)],
)
def test_win_rate_of_a_known_winner(write, tmp_path, reward, value, low, high):
    """One policy says "room room", the other "staff"; four of nine prompts want the room, the others the staff."""
    (tmp_path / "rewards.py").write_text(REWARDS)
    config = EvaluateConfig(
        measure="win_rate",
        model=chain_folder(tmp_path / "ours", {":": "room", "room": "room"}),
        against=chain_folder(tmp_path / "other", {":": "staff"}),
        rewards=(f"{tmp_path / 'rewards.py'}:{reward}",),
        dataset=write("rows.jsonl", prompts(9)),
        batch_size=8,
        sampling=SamplingConfig(max_new_tokens=2, temperature=0.0),
    )
    result = evaluate.run(config)
    rate = result["win_rate"]
    assert (rate.value, rate.low, rate.high, rate.count) == pytest.approx((value, low, high, 9), abs=1e-5)
    scores = (result["score"], result["score_of_other"])
    assert scores == pytest.approx({"long": (2.0, 1.0), "mentions": (4 / 9, 5 / 9)}[reward])


@pytest.fixture
def contest(write, tmp_path):
    """A policy that says "room room" against one that says "staff", on nine prompts."""
    (tmp_path / "rewards.py").write_text(REWARDS)

    def make(*rewards: str, weights: tuple[float, ...] = ()) -> EvaluateConfig:
        return EvaluateConfig(
            measure="win_rate",
            model=chain_folder(tmp_path / "ours", {":": "room", "room": "room"}),
            against=chain_folder(tmp_path / "other", {":": "staff"}),
            rewards=tuple(f"{tmp_path / 'rewards.py'}:{name}" for name in rewards),
            reward_weights=weights,
            dataset=write("rows.jsonl", prompts(9)),
            batch_size=8,
            sampling=SamplingConfig(max_new_tokens=2, temperature=0.0),
        )

    return make


def test_rewards_are_weighed(contest):
    """Two words for one make up for a wish in 4 of 9 prompts; 0.1 of them does not."""
    result = evaluate.run(contest("long", "mentions", "sometimes", weights=(0.1, 3.0, 0.0)))
    assert (result["score"], result["score_of_other"]) == pytest.approx((0.2 + 3 * 4 / 9, 0.1 + 3 * 5 / 9))
    assert result["win_rate"].value == pytest.approx(4 / 9)


def test_a_win_rate_needs_a_score_for_every_answer(contest):
    with pytest.raises(ValueError, match="no reward has an opinion on 5 of 9 answers; a win rate needs a score for ev"):
        evaluate.run(contest("sometimes"))


def test_where_a_reward_has_no_opinion_the_others_decide(contest):
    result = evaluate.run(contest("sometimes", "long"))
    assert (result["score"], result["score_of_other"]) == pytest.approx((2 + 4 / 9, 1 + 4 / 9))


def test_weights_that_do_not_fit_are_refused_before_loading():
    settings = EvaluateConfig(
        measure="win_rate", model="m", against="n", dataset="d", rewards=("operator:add",), reward_weights=(1, 2)
    )
    with pytest.raises(ValueError, match="reward_weights has 2 numbers for 1 rewards: add"):
        evaluate.run(settings)


def test_a_result_that_exists_is_kept(tmp_path):
    (tmp_path / "result.json").write_text("{}")
    out = str(tmp_path / "result.json")
    with pytest.raises(ValueError, match="result.json exists; write the result to a new file, or remove it first"):
        evaluate.run(EvaluateConfig(measure="accuracy", model="nothing", dataset="nothing", out=out))


def test_attention_that_the_devices_cannot_have_is_refused_before_a_model_is_loaded():
    compute = ComputeConfig(attention="cudnn", dtype="bfloat16")
    with pytest.raises(ValueError, match="compute.attention='cudnn' needs an NVIDIA GPU; the program is for cpu"):
        evaluate.run(EvaluateConfig(measure="accuracy", model="nothing", dataset="nothing", compute=compute))


def test_answers_have_a_row_each_where_the_attention_needs_that(monkeypatch, caplog, scorer, write):
    monkeypatch.setattr(evaluate, "why_not_share", lambda config, compute, tokens: f"{compute.attention}, {tokens}")
    config = EvaluateConfig(
        measure="accuracy", model=str(scorer), dataset=write("rows.jsonl", pairs(8)), batch_size=8, data=DATA
    )
    with caplog.at_level(logging.INFO, logger="jaxrlhf"):
        evaluate.run(config)
    assert any("evaluation data: answers have a row each (auto, " in line for line in caplog.messages)


@pytest.mark.parametrize(("measure", "folder"), [("perplexity", "policy"), ("accuracy", "scorer")])
def test_sequences_beyond_the_last_position_are_refused(request, write, measure, folder):
    text = "room " * 64
    rows = [{"prompt": "the", "completion": text}, {"prompt": "the", "completions": [text, "hall"], "ranks": [1, 2]}]
    config = EvaluateConfig(
        measure=measure,
        model=str(request.getfixturevalue(folder)),
        dataset=write("rows.jsonl", rows[:1] if measure == "perplexity" else rows[1:]),
        batch_size=8,
    )
    with pytest.raises(ValueError, match="has 67 tokens, and the model 64 positions; lower data.max_length"):
        evaluate.run(config)


def test_what_has_no_effect_is_refused():
    with pytest.raises(ValueError, match="against, sampling: no effect on measure=perplexity"):
        EvaluateConfig(measure="perplexity", model="m", dataset="d", against="x", sampling=SamplingConfig(seed=1))
    with pytest.raises(ValueError, match="reward_weights: no effect on measure=accuracy"):
        EvaluateConfig(measure="accuracy", model="m", dataset="d", reward_weights=(1.0,))
    with pytest.raises(ValueError, match="win_rate needs against, and reward_model or rewards"):
        EvaluateConfig(measure="win_rate", model="m", dataset="d")
