import dataclasses
import re

import jax
import numpy as np
import pytest

from jaxrlhf.data.config import DataConfig, DatasetConfig
from jaxrlhf.data.index import Index
from jaxrlhf.data.indexing import build_index
from jaxrlhf.demo.tokenizer import build_tokenizer
from jaxrlhf.trainers import kto
from jaxrlhf.trainers.config import KTOConfig, OptimConfig
from tests.trainers.small import config, labelled, metrics, start, train

SLOW = OptimConfig(learning_rate=1e-3, schedule="constant")


def labels(good: int, bad: int) -> Index:
    rows = [{"prompt": "the room", "completion": "was clean .", "label": i < good} for i in range(good + bad)]
    return build_index("unpaired", [rows], build_tokenizer(), DataConfig())


def settings(**fields: float) -> KTOConfig:
    return KTOConfig(out="runs/x", **fields)


def warning(config: KTOConfig, index: Index, caplog: pytest.LogCaptureFixture) -> str:
    """What the method says of its data; "" if nothing."""
    caplog.clear()
    kto.warn_of_imbalance(config, index)
    return "".join(record.getMessage() for record in caplog.records)


@pytest.mark.parametrize(("good", "bad"), [(3, 3), (4, 3)])
def test_labels_in_balance_are_passed_over(good, bad, caplog):
    assert warning(settings(), labels(good, bad), caplog) == ""
    assert warning(settings(desirable_weight=0.5), labels(2 * good, bad), caplog) == ""
    assert warning(settings(undesirable_weight=2.0), labels(2 * good, bad), caplog) == ""


@pytest.mark.parametrize(("good", "bad", "ratio"), [(2, 3, "0.67"), (5, 3, "1.67"), (6, 2, "3.00")])
def test_labels_out_of_balance_are_warned_of_with_weights_that_balance_them(good, bad, ratio, caplog):
    index = labels(good, bad)
    text = warning(settings(), index, caplog)
    assert f"desirable_weight=1 x {good} good answers over undesirable_weight=1 x {bad} bad ones is {ratio}" in text
    advice = re.findall(r"(\w+_weight) from ([\d.]+) to ([\d.]+)", text)
    assert [name for name, _, _ in advice] == ["desirable_weight", "undesirable_weight"]
    for name, least, most in advice:
        assert warning(settings(**{name: float(least)}), index, caplog) == ""
        assert warning(settings(**{name: float(most)}), index, caplog) == ""
        assert warning(settings(**{name: 0.9 * float(least)}), index, caplog) != ""
        assert warning(settings(**{name: 1.1 * float(most)}), index, caplog) != ""


def test_a_data_set_that_is_seen_twice_as_often_counts_twice(tmp_path, caplog):
    for name, label in (("good", "true"), ("bad", "false")):
        row = f'{{"prompt": "the room", "completion": "was clean .", "label": {label}}}\n'
        (tmp_path / f"{name}.jsonl").write_text(row * 3)
    sources = [
        DatasetConfig(path=str(tmp_path / "good.jsonl"), weight=2),
        DatasetConfig(path=str(tmp_path / "bad.jsonl")),
    ]
    index = build_index("unpaired", sources, build_tokenizer(), DataConfig())
    assert "6 good answers over undesirable_weight=1 x 3 bad ones is 2.00" in warning(settings(), index, caplog)


def test_a_run_learns_what_is_good_and_says_what_it_read(tmp_path, caplog):
    rows = [row for number, row in enumerate(labelled()) if row["label"] or number > 8]
    options = {"steps": 8, "optim": SLOW, "beta": 1.0}
    kto.run(config("kto", tmp_path / "run", **options), model=start(), dataset=rows, eval_dataset=labelled(5))
    assert "12 good answers over undesirable_weight=1 x 7 bad ones is 1.71" in caplog.text
    first, *steps, last = metrics(tmp_path / "run")
    assert first["eval/loss"] == pytest.approx(0.5, abs=1e-6) and first["eval/kl"] == pytest.approx(0.0, abs=1e-5)
    assert steps[0]["rewards/margins"] == pytest.approx(0.0, abs=1e-5)
    assert last["eval/rewards/margins"] > 0.1 and last["eval/loss"] < 0.49


@pytest.mark.slow
def test_micro_batches_give_the_same_run(tmp_path):
    whole = train("kto", tmp_path / "whole", batch_size=16, optim=SLOW, steps=3)
    parts = train("kto", tmp_path / "parts", batch_size=16, optim=SLOW, steps=3, micro_batches=2, eval_batch_size=16)
    for one, other in zip(metrics(tmp_path / "whole"), metrics(tmp_path / "parts"), strict=True):
        assert other == pytest.approx(one, rel=1e-3, abs=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), whole.model.params, parts.model.params)


def test_another_reference_gives_other_rewards(tmp_path):
    model = start()
    other = dataclasses.replace(model, params=jax.tree.map(lambda leaf: 1.5 * leaf, model.params))
    kto.run(config("kto", tmp_path, steps=1), model=model, reference=other, dataset=labelled())
    (line,) = metrics(tmp_path)
    assert abs(line["rewards/chosen"]) > 1e-3
