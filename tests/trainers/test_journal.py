"""Windows of metrics: when they end, what they add up, what is shown of them."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from jaxrlhf.metrics import MetricsWriter
from jaxrlhf.ops.stats import Mean, Sum
from jaxrlhf.trainers.journal import Journal, histogram
from tests.trainers.small import histograms


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


def test_scores_of_a_window_make_one_histogram(tmp_path, journal):
    for number, scores in enumerate(([1.0, 2.0], [np.nan, 6.0], [9.0, 9.0]), start=1):
        journal.add(number, step(1.0, 1.0), {}, np.asarray(scores, np.float32))
    journal.close()
    first, last = histograms(tmp_path)
    assert (first["step"], last["step"]) == (2, 3)
    assert first["scores"]["edges"] == pytest.approx(np.linspace(1.0, 6.0, 21))
    counts = np.asarray(first["scores"]["counts"])
    assert counts.sum() == 3 and (counts[[0, 4, 19]] == 1).all() and first["scores"]["unscored"] == 1
    assert sum(last["scores"]["counts"]) == 2 and last["scores"]["unscored"] == 0


def test_methods_without_scores_have_no_histograms(tmp_path, journal):
    journal.add(2, step(1.0, 1.0), {})
    journal.close()
    assert not (tmp_path / "histograms.jsonl").exists()


def test_equal_scores_lie_in_the_middle_of_one_unit():
    found = histogram(np.full(3, 7.0, np.float32))
    assert (found["edges"][0], found["edges"][-1], len(found["edges"])) == (6.5, 7.5, 21)
    assert found["counts"][10] == sum(found["counts"]) == 3


def test_no_scores_are_counted_as_such():
    found = histogram(np.full(3, np.nan, np.float32))
    assert (found["edges"][0], found["edges"][-1], sum(found["counts"]), found["unscored"]) == (0.0, 1.0, 0, 3)


def test_neighbouring_floats_have_bins_between_them():
    scores = np.asarray([1e6, np.nextafter(np.float32(1e6), np.float32(2e6))], np.float32)
    counts = histogram(scores)["counts"]
    assert counts[0] == counts[-1] == 1 and sum(counts) == 2


class Tracked:
    def __init__(self):
        self.seen = []

    def write(self, step, values):
        self.seen.append((step, dict(values)))

    def close(self, *, failed):
        self.seen.append("failed" if failed else "closed")


def test_trackers_see_the_lines_and_how_the_run_ended(tmp_path):
    tracked = Tracked()
    with MetricsWriter(tmp_path) as writer, Journal(writer, 2, main=True) as journal:
        journal.begin(5, 2, 100, [tracked])
        journal.add(3, step(2.0, 7.0), {"learning_rate": 0.1})
        journal.write(3, {"eval/loss": 3.0})
    written = [(line.pop("step"), line) for line in lines(tmp_path)]
    assert [number for number, _ in written] == [3, 3]
    assert tracked.seen == [*written, "closed"]


def test_trackers_are_told_of_a_failure(tmp_path):
    tracked = Tracked()
    with MetricsWriter(tmp_path) as writer, pytest.raises(ZeroDivisionError):
        with Journal(writer, 2, main=True) as journal:
            journal.begin(5, 0, 0, [tracked])
            raise ZeroDivisionError
    assert tracked.seen == ["failed"]


def test_a_tracker_that_fails_does_not_hide_what_ended_the_run(tmp_path, caplog):
    class Broken:
        closed = False

        def write(self, step, values):
            raise OSError("the tracker is gone")

        def close(self, *, failed):
            self.closed = failed

    broken = Broken()
    with MetricsWriter(tmp_path) as writer, pytest.raises(RuntimeError, match="the real cause"):
        with Journal(writer, 2, main=True) as journal:
            journal.begin(5, 0, 0, [broken])
            journal.add(1, step(2.0, 1.0), {})
            raise RuntimeError("the real cause")
    assert broken.closed and "the last metrics are lost: the tracker is gone" in caplog.text
    with MetricsWriter(tmp_path) as writer, pytest.raises(OSError, match="the tracker is gone"):
        with Journal(writer, 2, main=True) as journal:
            journal.begin(5, 0, 0, [broken])
            journal.add(1, step(2.0, 1.0), {})
