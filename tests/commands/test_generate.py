import json

import pytest

from jaxrlhf.commands import generate
from jaxrlhf.commands.config import GenerateConfig, SamplingConfig
from tests.trainers.small import prompts


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_answers_are_written_beside_their_rows(policy, write, tmp_path):
    rows = prompts(5)
    config = GenerateConfig(
        model=str(policy),
        dataset=write("prompts.jsonl", rows),
        out=str(tmp_path / "answers.jsonl"),
        answers=3,
        batch_size=8,
        sampling=SamplingConfig(max_new_tokens=6),
    )
    generate.run(config)
    found = read(tmp_path / "answers.jsonl")
    assert [(row["prompt"], row["wanted"]) for row in found] == [(row["prompt"], row["wanted"]) for row in rows]
    assert all(len(row["completions"]) == 3 for row in found)
    assert any(len(set(row["completions"])) > 1 for row in found)
    generate.run(config)
    assert read(tmp_path / "answers.jsonl") == found


def test_one_answer_is_a_completion_and_greedy_repeats(policy, write, tmp_path):
    rows = prompts(2) * 2
    config = GenerateConfig(
        model=str(policy),
        dataset=write("prompts.jsonl", rows),
        out=str(tmp_path / "answers.jsonl"),
        batch_size=8,
        sampling=SamplingConfig(max_new_tokens=6, temperature=0.0),
    )
    generate.run(config)
    found = [row["completion"] for row in read(tmp_path / "answers.jsonl")]
    assert found[:2] == found[2:]


def test_bad_numbers_are_refused():
    with pytest.raises(ValueError, match=r"temperature=-1.0 must not be negative; top_p=2.0 must lie in \(0, 1\]"):
        SamplingConfig(temperature=-1.0, top_p=2.0)
    with pytest.raises(ValueError, match="answers=0"):
        GenerateConfig(model="m", dataset="d", out="o", answers=0)
