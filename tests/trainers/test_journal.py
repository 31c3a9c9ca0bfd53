"""Windows of metrics: when they end, what they add up, what is shown of them."""

import json

import jax.numpy as jnp
import pytest

from jaxrlhf.metrics import MetricsWriter
from jaxrlhf.ops.stats import Mean, Sum
from jaxrlhf.trainers.journal import Journal


def step(loss: float, tokens: float):
    return {"loss": Mean(jnp.float32(loss * tokens), jnp.float32(tokens)), "num_tokens": Sum(jnp.float32(tokens))}


@pytest.fixture
def journal(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        journal = Journal(writer, 2, main=True)
        journal.begin(5, 0, 100)
        yield journal


def lines(tmp_path):
    return [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]


def test_a_window_is_a_mean_over_its_tokens_and_is_written_one_step_late(tmp_path, journal):
    journal.add(1, step(2.0, 1.0), {"learning_rate": 0.1})
    journal.add(2, step(5.0, 3.0), {"learning_rate": 0.2})
    assert not (tmp_path / "metrics.jsonl").exists()  # nobody has waited for the device yet
    journal.add(3, step(9.0, 1.0), {"learning_rate": 0.3})
    (line,) = lines(tmp_path)
    assert (line["step"], line["loss"], line["learning_rate"], line["num_tokens"]) == (2, 17 / 4, 0.2, 104)
    assert line["time/iteration_s"] > 0


def test_an_evaluation_ends_the_window_and_both_are_remembered(tmp_path, journal):
    journal.add(1, step(2.0, 1.0), {"learning_rate": 0.1})
    journal.write(1, {"eval/loss": 3.0})
    assert [(line["step"], line.get("loss"), line.get("eval/loss")) for line in lines(tmp_path)] == [
        (1, 2.0, None),
        (1, None, 3.0),
    ]
    assert journal.last["loss"] == 2.0 and journal.last["eval/loss"] == 3.0


def test_closing_writes_what_is_left(tmp_path, journal):
    journal.add(1, step(2.0, 7.0), {})
    journal.close()
    assert lines(tmp_path)[-1]["num_tokens"] == journal.num_tokens == 107
