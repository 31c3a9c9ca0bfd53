"""Rows of the device check at sizes of a few dozen: that what is measured is what runs."""

import json
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.device_check import correctness, iterations, peaks
from benchmarks.device_check.clock import Clock
from benchmarks.device_check.head import Task, worth_of
from benchmarks.device_check.models import cache_bytes, pairs, parameter_count, sequences
from benchmarks.device_check.runner import ROOT
from benchmarks.device_check.shapes import HALF_BILLION, ONE_BILLION, TINY, HeadShape
from benchmarks.device_check.sheet import Sheet, read_rows
from benchmarks.device_check.train import worth_of as worth_of_training

MODEL = TINY.training.model


def sheet(folder: Path, section: str, seconds: float = 100) -> Sheet:
    return Sheet(folder / f"{section}.jsonl", section, "cpu", Clock(seconds))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("implementation", ["chunked", "fused"])
def test_the_head_is_right_and_an_error_would_be_seen(implementation: str, dtype: str):
    case = correctness.make_case(HeadShape(9, 16, 131), dtype, options=True)
    amounts = np.linspace(-1, 1, 9, dtype=np.float32)
    outcome = correctness.outcome_of(case, jnp.asarray(amounts), dtype, implementation)
    right = correctness.verdict(*correctness.errors_of(case, outcome, amounts.astype(np.float64), dtype))
    assert right["ok"], right
    fields, loss, by_hidden, by_weight = outcome
    for wrong in ((fields, loss + 1e-4, by_hidden, by_weight), (fields, loss, by_hidden, 1.01 * by_weight)):
        found = correctness.verdict(*correctness.errors_of(case, wrong, amounts.astype(np.float64), dtype))
        assert not found["ok"]
        assert found["worst"].startswith("weight" if wrong[1] is loss else "loss")


def test_a_nan_is_wrong_and_the_worst():
    assert correctness.verdict({"a": float("nan"), "b": 9.0}, {"a": 1.0, "b": 1.0})["worst"] == "a nan of 1e+00"
    assert not correctness.verdict({"a": float("nan")}, {"a": 1.0})["ok"]


def test_peaks_end_with_the_two_numbers(tmp_path: Path):
    found = sheet(tmp_path, "peaks")
    peaks.measure(found, TINY)
    rows = read_rows(found.path)
    products = [row for row in rows if row.get("name") == "product" and row["dtype"] == "bfloat16"]
    assert [row["shape"] for row in products] == ["32 x 32 x 32", "64 x 64 x 64", "32 x 24 x 96"]
    assert products[0]["tflops"] == pytest.approx(2 * 32**3 / products[0]["ms"] / 1e9)
    copy = next(row for row in rows if row["name"] == "copy")
    assert copy["gbs"] == pytest.approx(2 * 2**20 / copy["ms"] / 1e6)
    ceilings = next(row for row in rows if row["name"] == "ceilings")
    assert ceilings["tflops"] == max(row["tflops"] for row in products) and ceilings["gbs"] == copy["gbs"]
    assert {row["dtype"] for row in rows[rows.index(ceilings) + 1 :]} == {"float32, DEFAULT", "float32, HIGHEST"}


def test_an_iteration_is_timed_by_phase_without_the_first(monkeypatch: pytest.MonkeyPatch):
    now, costs = [0.0], iter([50.0, 60.0, 1.0, 2.0, 3.0, 5.0])  # two phases, three iterations
    monkeypatch.setattr(iterations.time, "perf_counter", lambda: now[0])

    def iterate() -> iterations.Phases:
        for name in ("generate", "train"):
            now[0] += next(costs)
            yield (name, 7), None

    assert iterations._timed(iterate, Clock(100)) == {
        ("generate", 7): [1.0, 3.0],
        ("train", 7): [2.0, 5.0],
        ("all", 7): [3.0, 8.0],
    }


def test_dpo_is_one_phase(tmp_path: Path):
    found = sheet(tmp_path, "iterations")
    iterations.measure(found, TINY, "dpo")
    rows = {row["name"]: row for row in read_rows(found.path)}
    assert list(rows) == ["DPO: train", "DPO: all"]
    row = rows["DPO: train"]
    assert row["tokens_per_s"] * row["ms"] / 1e3 == pytest.approx(2 * TINY.iteration.pairs * TINY.iteration.pair_length)


def test_worth_of_the_head_and_of_a_train_step():
    worth = worth_of(Task(HeadShape(10, 20, 30), "logp, entropy, KL", "fwd+bwd"), "chunked", None)
    assert worth(1e-12) == {"tflops": pytest.approx(6 * 2 * 10 * 20 * 30)}
    training = TINY.training
    tokens, pairs_seen = training.rows * training.length, training.rows * training.length * (training.length + 1) / 2
    flops = 6 * parameter_count(MODEL) * tokens + 12 * MODEL.num_layers * MODEL.hidden_size * pairs_seen
    assert worth_of_training(training, None)(1.0) == {
        "tokens_per_s": tokens,
        "tflops": pytest.approx(flops / 1e12),
    }


def test_models_have_the_sizes_that_they_are_named_after():
    assert parameter_count(ONE_BILLION) == 1_235_814_400  # Llama 3.2 1B
    assert parameter_count(HALF_BILLION) == pytest.approx(0.51e9, rel=0.01)
    assert cache_bytes(ONE_BILLION, 2) == 2 * 16 * 8 * 64 * 2


def test_batches_are_shifted_once_and_read_after_the_prompt():
    batch = sequences(MODEL, 3, 10, prompt=4)
    assert np.array_equal(batch.tokens[:, 1:], batch.targets[:, :-1])
    assert batch.mask.sum() == 3 * 7 and batch.columns is not None and np.array_equal(batch.columns[0], range(3, 10))
    answers = pairs(MODEL, 2, 10, 4).answers
    assert np.array_equal(answers.tokens[:, 0, :4], answers.tokens[:, 1, :4])
    assert not np.array_equal(answers.tokens[:, 0, 4:], answers.tokens[:, 1, 4:])


def run_script(folder: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    command = [str(ROOT / "scripts" / "tpu_check"), *arguments, "--out", str(folder)]
    environment = {
        "PATH": "/usr/bin:/bin",
        "PYTHON": sys.executable,
        "JAX_COMPILATION_CACHE_DIR": str(folder / "cache"),
    }
    return subprocess.run(command, env={**environment, **more}, capture_output=True, text=True, check=False)


def test_without_the_device_a_script_says_so_in_a_line_and_runs_nothing(tmp_path: Path):
    done = run_script(tmp_path / "rows", "peaks", JAX_PLATFORMS="cpu")
    assert (done.returncode, done.stdout) == (2, "")
    why = "jax sees no TPU here (but a CPU; JAX_PLATFORMS is cpu); --tiny tries the check out on a CPU"
    assert done.stderr == f"scripts/tpu_check: {why}\n"
    assert not (tmp_path / "rows").exists()


def test_scripts_run_a_section_and_write_its_rows(tmp_path: Path):
    done = run_script(tmp_path, "--tiny", "peaks")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [json.loads(line) for line in (tmp_path / "peaks.jsonl").read_text().splitlines()]
    assert f"{len(rows)} rows, 0 right, 0 wrong, 0 failed, 0 skipped" in done.stdout
    assert (tmp_path / "table.md").read_text() in done.stdout
