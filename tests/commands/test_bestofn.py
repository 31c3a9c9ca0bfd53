import dataclasses
import json
import math

import numpy as np
import pytest

from jaxrlhf.checkpoint.export import export_hf
from jaxrlhf.commands import bestofn, generate
from jaxrlhf.commands.bestofn import best_row, ranked_row, table
from jaxrlhf.commands.config import BestOfNConfig, GenerateConfig, JudgeConfig, SamplingConfig
from jaxrlhf.data.config import DataConfig
from jaxrlhf.data.indexing import build_index
from jaxrlhf.demo.tokenizer import build_tokenizer
from jaxrlhf.evaluation.best_of_n import best_of_n
from jaxrlhf.trainers import sft
from tests.commands.chains import chain
from tests.trainers.small import config as training
from tests.trainers.small import prompts

NAN = math.nan
SAMPLING = SamplingConfig(max_new_tokens=6)
REWARDS = """
def letters(prompts, completions, **columns):
    return [len(text) / 100 for text in completions]

def brief(prompts, completions, wanted):
    return [-float(len(text.split())) for text in completions]

def picky(prompts, completions, **columns):
    return [float(len(text)) if "the" in text.split() else None for text in completions]

def silent(prompts, completions, **columns):
    return [None] * len(completions)

def lonely(prompts, completions, **columns):
    return [1.0 if number % 4 == 0 else None for number in range(len(completions))]

def narrow(prompts, completions):
    return [0.0] * len(completions)
"""


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def reward(tmp_path):
    (tmp_path / "rewards.py").write_text(REWARDS)
    return lambda name: f"{tmp_path / 'rewards.py'}:{name}"


@pytest.fixture
def settings(policy, write, tmp_path):
    """Four answers to each of eleven prompts, in two batches."""
    return BestOfNConfig(
        model=str(policy),
        dataset=write("prompts.jsonl", prompts(11)),
        out=str(tmp_path / "new" / "best.jsonl"),
        answers=4,
        batch_size=8,
        sampling=SAMPLING,
    )


def test_the_best_of_the_answers_that_generate_draws(settings, reward, tmp_path, capsys):
    result = bestofn.run(
        dataclasses.replace(settings, rewards=(reward("letters"),), summary=str(tmp_path / "new" / "summary.json"))
    )
    drawn = tmp_path / "answers.jsonl"
    generate.run(GenerateConfig(
        model=settings.model, dataset=settings.dataset, out=str(drawn), answers=4, batch_size=8, sampling=SAMPLING
    ))  # fmt: skip
    rows, answers = read(tmp_path / "new" / "best.jsonl"), read(drawn)
    assert [(row["prompt"], row["wanted"]) for row in rows] == [(row["prompt"], row["wanted"]) for row in prompts(11)]
    for row, drawn_row in zip(rows, answers, strict=True):
        best = max(drawn_row["completions"], key=len)
        place = drawn_row["completions"].index(best)
        assert (row["completion"], row["terminated"]) == (best, drawn_row["terminated"][place])
        assert row["score"] == pytest.approx(len(best) / 100)

    lengths = np.array([[len(text) / 100 for text in row["completions"]] for row in answers])
    found = [row["score"] for row in result]
    assert found[0] == pytest.approx(lengths.mean()) and found[-1] == pytest.approx(lengths.max(axis=1).mean())
    assert json.loads((tmp_path / "new" / "summary.json").read_text()) == result
    header, *lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert header == ["n", "score", "score_error", "kl_bound"]
    assert [line[0] for line in lines] == ["1", "2", "4"]
    assert lines[-1][1:] == [f"{result[-1][name]:.4g}" for name in header[1:]]


def test_what_was_chosen_is_fine_tuned_on(settings, reward, tmp_path):
    bestofn.run(dataclasses.replace(settings, rewards=(reward("brief"),)))
    out = str(tmp_path / "new" / "best.jsonl")
    trained = sft.run(training("sft", tmp_path / "sft", model=settings.model, dataset=out, steps=1))
    assert math.isfinite(trained.metrics["loss"])


def test_all_answers_are_ranked_for_a_reward_model(settings, scorer, reward, tmp_path):
    """By a reward model and a Python reward together, the second worth nothing to the judge."""
    judge = JudgeConfig(rewards=(reward("letters"), reward("brief")), reward_weights=(1.0, 0.0))
    result = bestofn.run(dataclasses.replace(
        settings, reward_model=str(scorer), rewards=(reward("letters"),), reward_weights=(2.0, 0.5), judge=judge,
        keep_all=True,
    ))  # fmt: skip
    rows = read(tmp_path / "new" / "best.jsonl")
    scores = np.array([row["scores"] for row in rows])
    letters = np.array([[len(text) / 100 for text in row["completions"]] for row in rows])
    np.testing.assert_allclose([row["score"] for row in result], best_of_n(scores).mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose([row["judge"] for row in result], best_of_n(scores, letters).mean(axis=0), rtol=1e-6)

    alone = dataclasses.replace(settings, out=str(tmp_path / "alone.jsonl"), reward_model=str(scorer), keep_all=True)
    bestofn.run(alone)
    by_model = np.array([row["scores"] for row in read(tmp_path / "alone.jsonl")])
    assert by_model.std() > 0
    np.testing.assert_allclose(scores, 2 * by_model + 0.5 * letters, rtol=1e-5, atol=1e-6)

    index = build_index("ranked", [rows], build_tokenizer(), DataConfig())
    assert index.units == sum(len(set(row["ranks"])) > 1 for row in rows) > 5
    assert all(row["ranks"][row["scores"].index(max(row["scores"]))] == 1 for row in rows)


def test_answers_without_a_score_are_left_out_and_counted(settings, reward, tmp_path, caplog):
    result = bestofn.run(dataclasses.replace(settings, rewards=(reward("picky"),), answers=8))
    rows = read(tmp_path / "new" / "best.jsonl")
    assert 0 < len(rows) == result[0]["score_prompts"] < 11
    assert all("the" in row["completion"].split() for row in rows)
    assert result[-1] == {
        "n": 8, "score": None, "score_error": None, "score_prompts": 0, "kl_bound": pytest.approx(math.log(8) - 7 / 8)
    }  # fmt: skip
    assert f"88 answers have no score and are left out; {11 - len(rows)} of 11 prompts not written" in caplog.text


@pytest.mark.parametrize(
    ("name", "keep_all", "message"),
    [
        ("silent", False, "no reward has an opinion on any of the 44 answers; mend the rewards or reward_weights"),
        ("lonely", True, "no prompt has 2 answers with a score, which a rank needs; draw more answers, or leave keep"),
    ],
)
def test_where_there_is_nothing_to_write_there_is_no_file(settings, reward, tmp_path, name, keep_all, message):
    with pytest.raises(ValueError, match=message):
        bestofn.run(dataclasses.replace(settings, rewards=(reward(name),), keep_all=keep_all))
    assert list((tmp_path / "new").iterdir()) == []


def test_columns_of_the_table_never_touch(capsys):
    bestofn._show(table(np.array([[-1.2345678e31, 1e-5]]), np.array([[1e300, -1e-300]])))
    header, first, last = (line.split() for line in capsys.readouterr().out.splitlines())
    assert header == ["n", "score", "score_error", "judge", "judge_error", "kl_bound"]
    assert first == ["1", "-6.173e+30", "-", "5e+299", "-", "0"]
    assert last == ["2", "1e-05", "-", "-1e-300", "-", "0.1931"]


def test_rows_by_hand():
    prompt = {"prompt": "q", "id": 3, "score": 9.0, "scores": [9.0], "ranks": [1], "completion": "old"}
    texts, terminated = ["a", "b", "c", "d"], [True, False, True, True]
    best = best_row(prompt, texts, terminated, np.array([1.0, 2.0, NAN, 2.0]))
    assert best == {"prompt": "q", "completion": "b", "terminated": False, "id": 3, "score": 2.0}
    ranked = ranked_row(prompt, texts, terminated, np.array([1.0, 2.0, NAN, 2.0]))
    assert ranked == {
        "prompt": "q", "completions": ["a", "b", "d"], "terminated": [True, False, True], "id": 3,
        "scores": [1.0, 2.0, 2.0], "ranks": [3, 1, 1],
    }  # fmt: skip
    assert best_row(prompt, texts, terminated, np.full(4, NAN)) is None
    assert ranked_row(prompt, texts, terminated, np.array([1.0, NAN, NAN, NAN])) is None


def test_the_table_by_hand():
    rows = table(np.array([[1.0, 3.0], [2.0, 2.0], [5.0, NAN]]), np.array([[4.0, 0.0], [1.0, NAN], [2.0, 2.0]]))
    assert rows == [
        {
            "n": 1, "score": pytest.approx(3.0), "score_error": pytest.approx(1.0), "score_prompts": 3,
            "judge": pytest.approx(5 / 3), "judge_error": pytest.approx(1 / 3), "judge_prompts": 3, "kl_bound": 0.0,
        },
        {
            "n": 2, "score": pytest.approx(2.5), "score_error": pytest.approx(0.5), "score_prompts": 2,
            "judge": 0.0, "judge_error": None, "judge_prompts": 1, "kl_bound": pytest.approx(math.log(2) - 0.5),
        },
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"answers": 1}, "answers=1 leaves nothing to choose among; use 2 or more"),
        ({"batch_size": 0}, "batch_size=0 must be positive"),
        ({"sampling": SamplingConfig(temperature=0.0)}, "sampling.temperature=0 draws the same answer every time"),
        ({"summary": "o"}, "summary and out are both o; name two files"),
    ],
)
def test_what_cannot_be_is_refused_with_its_key(changes, message):
    with pytest.raises(ValueError, match=message):
        BestOfNConfig(**{"model": "m", "dataset": "d", "out": "o", **changes})


def test_weights_of_no_judge_are_refused():
    with pytest.raises(ValueError, match=r"reward_weights=\[1.0\] has no effect without a judge; set judge.reward_m"):
        JudgeConfig(reward_weights=(1.0,))


def test_files_that_exist_are_kept_and_something_must_give_a_score(tmp_path):
    (tmp_path / "there").write_text("ranks")
    there, new = str(tmp_path / "there"), str(tmp_path / "new")
    names = {"model": "nothing", "dataset": "nothing", "rewards": ("operator:add",)}
    with pytest.raises(ValueError, match="there exists; write answers to a new file, or remove it first"):
        bestofn.run(BestOfNConfig(out=there, **names))
    with pytest.raises(ValueError, match="there exists; write the summary to a new file"):
        bestofn.run(BestOfNConfig(out=new, summary=there, **names))
    with pytest.raises(ValueError, match="nothing gives a reward; set reward_model, or rewards"):
        bestofn.run(BestOfNConfig(model="nothing", dataset="nothing", out=new))
    with pytest.raises(ValueError, match="^judge.reward_weights has 2 numbers for 1 rewards: add"):
        bestofn.run(
            BestOfNConfig(out=new, judge=JudgeConfig(rewards=("operator:add",), reward_weights=(1, 2)), **names)
        )


def test_rewards_that_do_not_fit_are_refused_before_sampling(settings, reward, scorer, tmp_path, monkeypatch):
    monkeypatch.setattr(bestofn, "draw_answers", None)
    with pytest.raises(ValueError, match="reward narrow cannot be called with the columns of the data, wanted"):
        bestofn.run(dataclasses.replace(settings, rewards=(reward("narrow"),)))
    with pytest.raises(ValueError, match=f"judge.reward_model={settings.model} is a language model"):
        judge = JudgeConfig(reward_model=settings.model)
        bestofn.run(dataclasses.replace(settings, rewards=(reward("letters"),), judge=judge))
    with pytest.raises(ValueError, match="batch_size=12 does not divide over 8 devices"):
        bestofn.run(dataclasses.replace(settings, rewards=(reward("letters"),), batch_size=12))
    other = chain({"room": "was"})
    other.tokenizer.add_tokens(["balcony"], special_tokens=True)  # of text, it would need a row of the embedding
    folder = export_hf(tmp_path / "other", other.params, other.config, tokenizer=other.tokenizer)
    with pytest.raises(ValueError, match="reward_model=.* has another tokenizer than the policy"):
        bestofn.run(dataclasses.replace(settings, model=str(folder), reward_model=str(scorer)))
