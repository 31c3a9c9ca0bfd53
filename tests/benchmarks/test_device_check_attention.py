"""Attention in the device check at sizes of a few dozen: that it is right, and that an error would be seen."""

from pathlib import Path

import jax.numpy as jnp
import pytest

from benchmarks.device_check import attention
from benchmarks.device_check.clock import Clock
from benchmarks.device_check.correctness import verdict
from benchmarks.device_check.shapes import TINY, AttentionShape
from benchmarks.device_check.sheet import Sheet, read_rows
from jaxrlhf.models.mix_kernels import mix_splash

SHAPE = TINY.attention[0]


def judge(case, mix, dtype):
    return verdict(*attention.errors_of(case, attention.outcome_of(case, mix, dtype), dtype))


@pytest.mark.parametrize("prefixes", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_token_that_is_seen_or_not_seen_by_mistake_is_wrong(dtype, prefixes):
    case, mix = attention.make_case(SHAPE, dtype, prefixes=prefixes), attention.backends_of("cpu")["xla"]
    assert judge(case, mix, dtype)["ok"]

    def all_of_a_row(segment_ids, prefix_ids, *parts):
        return mix(jnp.minimum(segment_ids, 1), None, *parts)

    def the_one_before(segment_ids, prefix_ids, *parts):
        return mix(segment_ids, jnp.maximum(segment_ids - 1, 0), *parts)

    assert not judge(case, all_of_a_row, dtype)["ok"]
    assert not judge(case, the_one_before, dtype)["ok"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_wrong_gradient_is_named(dtype):
    case = attention.make_case(SHAPE, dtype, prefixes=True)
    mixed, by_parts = attention.outcome_of(case, attention.backends_of("cpu")["xla, blocked"], dtype)
    wrong = (mixed, (by_parts[0], 1.02 * by_parts[1], by_parts[2]))
    found = verdict(*attention.errors_of(case, wrong, dtype))
    assert not found["ok"] and found["worst"].startswith("by keys 2.")


def test_the_kernel_of_tpus_would_be_right():
    case = attention.make_case(AttentionShape(2, 130, 2, 1, 64), "bfloat16", prefixes=False)
    found = judge(case, lambda segments, _, *parts: mix_splash(segments, *parts, interpret=True), "bfloat16")
    assert found["ok"], found


def test_every_backend_of_a_platform_has_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    whole = attention.backends_of("cpu")["xla"]
    monkeypatch.setattr(attention, "mix_cudnn", whole)
    monkeypatch.setattr(attention, "mix_splash", lambda segment_ids, *parts: whole(segment_ids, None, *parts))
    kept = {}
    for platform in ("cpu", "gpu", "tpu"):
        sheet = Sheet(tmp_path / f"{platform}.jsonl", "correctness", platform, Clock(100))
        attention.measure(sheet, TINY, platform)
        rows = read_rows(sheet.path)
        assert all(row["ok"] for row in rows)
        kept[platform] = [(row["name"], row["dtype"]) for row in rows if not row["implementation"].startswith("xla")]
        assert len(rows) == 8 + len(kept[platform])
    shared = "attention, rows of several answers"
    assert kept == {
        "cpu": [],
        "gpu": [("attention", "bfloat16"), (shared, "bfloat16")],
        "tpu": [("attention", "bfloat16")],
    }
