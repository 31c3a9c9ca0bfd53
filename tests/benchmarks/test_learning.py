"""What the learning table makes of findings; the trainers that it calls have tests of their own."""

import json

import pytest

from benchmarks.learning.analyses import curve, risen
from benchmarks.learning.findings import as_json
from benchmarks.learning.table import _accuracy, _mean


def point(kl: float, share: float, count: int) -> dict:
    accuracy = {"value": share, "low": 0.0, "high": 1.0, "count": count}
    return {"kl": kl, "gold": 1.0, "reward": 2.0, "accuracy": accuracy}


def test_curve_reads_evaluations_only(tmp_path):
    found = {"eval/rewards/reward_model/mean": 0.5, "eval/rewards/gold/mean": 4.0, "eval/objective/kl": 0.1}
    lines = [{"step": 0, **found}, {"step": 5, "objective/kl": 9.0}, {"step": 10, **found}]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert curve(tmp_path) == {"step": [0, 10], "kl": [0.1, 0.1], "reward": [0.5, 0.5], "gold": [4.0, 4.0]}


def test_curve_of_a_method_without_reference_has_no_kl(tmp_path):
    line = {"step": 0, "eval/rewards/reward_model/mean": 0.5, "eval/rewards/gold/mean": 4.0}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(line))
    assert curve(tmp_path) == {"step": [0], "reward": [0.5], "gold": [4.0]}


def test_risen_counts_per_answer():
    grams = risen(["a b c", "b c d", "x y"], ["b c", "b c b c"], size=2, most=2)
    assert grams[0] == {"words": "b c", "before": pytest.approx(2 / 3), "after": 1.5}
    assert grams[1] == {"words": "c b", "before": 0.0, "after": 0.5}


def test_mean_over_seeds_has_its_standard_error():
    assert _mean([1.0, 2.0, 3.0, 4.0], 2) == "2.50 ± 0.65"
    assert _mean([1.0], 2) == "1.00"


def test_accuracy_pools_the_pairs_of_a_seed_and_averages_over_seeds():
    seeds = {
        "0": {"checkpoints": [point(0.0, 0.9, 10), point(7.0, 1.0, 30), point(8.0, 0.6, 10)]},
        "1": {"checkpoints": [point(0.0, 0.7, 10), point(20.0, 0.5, 4)]},
    }
    assert _accuracy(seeds)[2:] == [
        "| 0 | 2 | 2 | 1.00 | 2.00 | 20 | 0.800 ± 0.100 |",
        "| 6 to 9 | 1 | 2 | 1.00 | 2.00 | 40 | 0.900 |",
        "| over 16 | 1 | 1 | 1.00 | 2.00 | 4 | 0.500 |",
    ]


def test_json_has_the_innermost_values_on_a_line():
    assert as_json({"kl": [0.123456, 1.0], "seeds": {"0": {"gold": None, "kl": 2}}}) == (
        '{\n "kl": [ 0.1235, 1.0 ],\n "seeds": {\n  "0": { "gold": null, "kl": 2 }\n }\n}\n'
    )
