"""The device check's arithmetic, its clock, how sections run and fail, and its table. No device, no compilation."""

import dataclasses
import json
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from benchmarks.device_check import __main__ as command
from benchmarks.device_check import contest, oracle, presence
from benchmarks.device_check.ceilings import Ceilings, ceilings_of, of_copy, of_products, read_ceilings
from benchmarks.device_check.clock import Clock
from benchmarks.device_check.contest import Contestant, LeftOut, Runner, hold
from benchmarks.device_check.runner import is_wrong, run_sections
from benchmarks.device_check.sections import SECTIONS, Part, choose
from benchmarks.device_check.sheet import Sheet, read_rows
from benchmarks.device_check.stopping import stops_raised
from benchmarks.device_check.suite import outcome
from benchmarks.device_check.table import summary, table
from benchmarks.device_check.units import decode_bytes, gemm_unit, head_units, train_flops


@pytest.mark.parametrize(
    ("implementation", "mode", "without_kl", "with_kl"),
    [
        ("chunked", "fwd", 1, 2),
        ("chunked", "fwd+bwd", 4, 6),
        ("fused", "fwd+bwd", 3, 4),
        ("reference", "fwd", 1, 2),
        ("reference", "fwd+bwd", 3, 4),
        ("torch", "fwd+bwd", 3, 4),
    ],
)
def test_useful_units_of_the_head(implementation, mode, without_kl, with_kl):
    assert head_units(implementation, mode, kl=False) == without_kl
    assert head_units(implementation, mode, kl=True) == with_kl


def test_unit_of_the_head_at_the_size_of_the_roofline():
    assert gemm_unit(8192, 4096, 131072) == pytest.approx(8.80e12, rel=1e-3)


def test_train_flops_count_parameters_and_the_pairs_that_are_seen():
    # Two layers, attention 8 wide, 3 rows of 4 tokens: 10 pairs a row; two products of 2 FLOPs; backward is twice.
    attention = 3 * 2 * 2 * 2 * 8 * 10 * 3
    assert train_flops(100, {"layers": 2, "attention_width": 8}, 3, 4) == 6 * 100 * 12 + attention


def test_decoding_reads_the_weights_for_each_token_but_the_first_and_the_cache_so_far():
    # 3 new tokens after 5: two steps, which see 6 and 7 tokens.
    assert decode_bytes(1000, 10, batch=4, prompt=5, new=3) == 2 * 1000 + 4 * 10 * (6 + 7)


def test_fractions_are_of_what_was_measured():
    ceilings = Ceilings(tflops=800.0, gbs=4000.0)
    assert of_products(4e12, 0.01, ceilings) == {"tflops": 400.0, "fraction": 0.5, "of": "product"}
    assert of_copy(1e12, 1.0, ceilings) == {"gbs": 1000.0, "fraction": 0.25, "of": "copy"}
    assert of_products(4e12, 0.01, None) == {"tflops": 400.0}


def test_ceilings_are_the_best_bfloat16_product_and_the_copy(tmp_path: Path):
    rows = [
        {"dtype": "bfloat16", "tflops": 700.0},
        {"dtype": "bfloat16", "tflops": 790.0},
        {"dtype": "float32, DEFAULT", "tflops": 900.0},
        {"dtype": "float32", "gbs": 4300.0},
    ]
    sheet = Sheet(tmp_path / "peaks.jsonl", "peaks", "H", Clock(1))
    sheet.add(**ceilings_of(rows))
    assert read_ceilings(tmp_path, "H") == Ceilings(790.0, 4300.0)
    assert read_ceilings(tmp_path, "another") is None
    with pytest.raises(ValueError, match="no copy was measured"):
        ceilings_of(rows[:2])


class Watch:
    """A clock's time, moved by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_row_fits_if_as_much_time_is_left_as_the_longest_took():
    watch = Watch()
    clock = Clock(10, watch)
    for seconds, fits in ((4, True), (1, True), (2, True), (0, False)):  # 10, 6, 5 and 3 seconds are left
        assert clock.begin() is fits
        watch.now += seconds
        clock.end()


def contestant(name: str, watch: Watch, seconds: float, error: Exception | None = None) -> Contestant:
    def prepare() -> Runner:
        watch.now += seconds
        if error is not None:
            raise error
        return Runner(lambda: None, lambda result: None, {"temp_mib": 3.0}, lambda: 2**21)

    return Contestant(row={"name": name}, prepare=prepare, worth=lambda seconds: {"tflops": 1.0})


def test_rows_that_no_longer_fit_are_skipped_and_failures_leave_the_others(tmp_path: Path):
    watch = Watch()
    sheet = Sheet(tmp_path / "head.jsonl", "head", "H", Clock(10, watch))
    missing, broken = LeftOut("liger-kernel is not installed"), RuntimeError("out\n of  memory")
    hold(
        sheet,
        [
            contestant("first", watch, 4),
            contestant("missing", watch, 1, missing),
            contestant("broken", watch, 2, broken),
            contestant("late", watch, 1),
        ],
    )
    rows = {row["name"]: row for row in read_rows(sheet.path)}
    assert rows["late"]["skipped"] == "time"
    assert rows["missing"]["skipped"] == "liger-kernel is not installed"
    assert rows["broken"]["failed"] == "RuntimeError: out of memory"
    first = rows["first"]
    assert (first["temp_mib"], first["peak_mib"], first["prepare_s"], first["tflops"]) == (3.0, 2.0, 4.0, 1.0)
    assert first["section"] == "head" and first["device"] == "H" and "jax" in first["versions"]


def test_contestants_take_turns_and_the_median_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    turns = []
    seconds = {"a": iter([9.0, 9.0, 1.0, 5.0, 2.0]), "b": iter([9.0, 9.0, 3.0, 3.0, 4.0])}  # two warm up

    def measured(runner: Runner, calls: int) -> float:
        turns.append(runner.start())
        return next(seconds[turns[-1]])

    monkeypatch.setattr(contest, "seconds_of", measured)
    sheet = Sheet(tmp_path / "head.jsonl", "head", "H", Clock(100))
    made = [
        Contestant(row={"name": name}, prepare=lambda name=name: Runner(lambda: name, print), worth=lambda s: {})
        for name in "ab"
    ]
    hold(sheet, made, rounds=3)
    assert "".join(turns) == "aabb" + "ababab"
    assert [row["ms"] for row in read_rows(sheet.path)] == [2000.0, 3000.0]


def test_a_row_that_is_no_json_is_refused_with_its_place(tmp_path: Path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"section": "head"}\n{"sect')
    with pytest.raises(ValueError, match=r"rows\.jsonl:2: not JSON"):
        read_rows(file)
    file.write_text('{"name": "x"}\n')
    with pytest.raises(ValueError, match=r"rows\.jsonl:1: has no field 'section'"):
        read_rows(file)
    file.write_text('{"section": "ppo"}\n')
    with pytest.raises(ValueError, match=r"rows\.jsonl:1: section 'ppo'; expected one of correctness, peaks, head"):
        read_rows(file)


def test_a_file_without_rows_to_show_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "empty").write_text("")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    said = {"none": "No such file", ".": "Is a directory", "empty": "no rows", "binary": "not text"}
    for name, why in said.items():
        with pytest.raises(SystemExit) as ended:
            command.main(["tpu", "--show", str(tmp_path / name)])
        assert ended.value.code == 2
        error = capsys.readouterr().err
        assert "usage: scripts/tpu_check " in error
        assert f"{tmp_path / name}: {why}" in error and "expected a file SECTION.jsonl that a check wrote" in error


PROGRAMS = {
    "good": "open(sys.argv[1], 'a').write(json.dumps(row) + '\\n')",
    "dies": "sys.exit('no such device')",
    "killed": "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
    "stops us": "import os, signal, time; os.kill(os.getppid(), signal.SIGTERM); time.sleep(60)",
    "hangs": "open(sys.argv[1], 'a').write(json.dumps(row) + '\\n'); import time; time.sleep(60)",
}


def starter(folder: Path) -> Callable[[Part, str], list[str]]:
    def started(part: Part, section: str) -> list[str]:
        row = {"section": section, "name": part.name}
        program = f"import json, sys; row = {row!r}; {PROGRAMS[part.name]}"
        return [sys.executable, "-c", program, str(folder / f"{section}.jsonl")]

    return started


def test_a_part_that_dies_or_hangs_leaves_the_others(tmp_path: Path):
    (tmp_path / "head.jsonl").write_text(json.dumps({"section": "head", "name": "of an earlier run"}))
    sections = {
        "head": (Part("dies", 30), Part("good", 30)),
        "train": (Part("hangs", 1), Part("killed", 30)),
        "peaks": (Part("good", 30),),
    }
    rows, stopped = run_sections(sections, tmp_path, starter(tmp_path), {})
    assert stopped is None
    assert [(row["section"], row["name"]) for row in rows] == [
        ("head", "the whole of dies"),
        ("head", "good"),
        ("train", "hangs"),
        ("train", "the whole of hangs"),
        ("train", "the whole of killed"),
        ("peaks", "good"),
    ]
    assert rows[0]["failed"] == "ended with status 1: no such device"
    assert rows[3]["failed"] == "stopped after 1 s"
    assert rows[4]["failed"] == "ended by SIGKILL"
    assert [is_wrong(row) for row in rows] == [True, False, False, True, True, False]


def test_a_signal_ends_the_part_and_the_run_and_keeps_the_rows(tmp_path: Path):
    sections = {"head": (Part("good", 30), Part("stops us", 30), Part("good", 30)), "peaks": (Part("good", 30),)}
    handler, began = signal.getsignal(signal.SIGTERM), time.monotonic()
    with stops_raised():
        rows, stopped = run_sections(sections, tmp_path, starter(tmp_path), {})
    assert time.monotonic() - began < 30
    assert [row["name"] for row in rows] == ["good", "the whole of stops us"]
    assert rows == read_rows(tmp_path / "head.jsonl")
    assert rows[1]["failed"] == "stopped by SIGTERM"
    assert stopped is not None and stopped.status == 143
    assert signal.getsignal(signal.SIGTERM) is handler


def test_ignored_signals_stay_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stops_raised():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(
    ("question", "why"),
    [
        ("print('a warning'); print('gpu')", None),
        ("print('tpu')", "jax sees no GPU here (but a TPU; JAX_PLATFORMS is not set)"),
        ("import nothing_of_this_name", "jax does not start on a GPU here (ModuleNotFoundError: No module named"),
        ("import time; time.sleep(60)", "jax found no GPU within 1 s"),
    ],
)
def test_a_device_that_is_not_there_is_named(question: str, why: str | None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(presence, "QUESTION", question)
    found = presence.why_absent("gpu", {}, seconds=1 if "sleep" in question else 60)
    assert found is None if why is None else found is not None and found.startswith(why)


def test_wrong_are_wrong_results_and_checks_that_were_not_made_and_no_peer():
    assert is_wrong({"section": "correctness", "name": "head", "ok": False})
    assert is_wrong({"section": "correctness", "name": "head", "failed": "out of memory"})
    assert not is_wrong({"section": "correctness", "name": "head", "ok": True})
    assert is_wrong({"section": "correctness", "name": "tests/losses", "skipped": "time"})
    assert is_wrong({"section": "correctness", "name": "tests/losses", "skipped": "pytest is not installed"})
    assert not is_wrong({"section": "correctness", "name": "head", "skipped": "needs a TPU"})
    assert not is_wrong({"section": "train", "name": "sft", "skipped": "time"})
    assert not is_wrong({"section": "head", "name": "fwd", "implementation": "torch", "failed": "out of memory"})


def test_no_section_takes_more_than_four_minutes():
    for parts in SECTIONS.values():
        assert sum(part.seconds for part in parts) <= 240
        assert all(part.row_seconds < part.seconds for part in parts)


def test_sections_run_in_order_and_peaks_before_what_is_divided_by_them():
    assert choose("gpu", [], peaks_known=False) == list(SECTIONS)
    assert choose("tpu", [], peaks_known=False) == ["correctness", "peaks", "head", "train", "generate"]
    assert choose("gpu", ["train", "head"], peaks_known=False) == ["peaks", "head", "train"]
    assert choose("gpu", ["train", "head"], peaks_known=True) == ["head", "train"]
    assert choose("gpu", ["iterations"], peaks_known=False) == ["iterations"]


@pytest.mark.parametrize("arguments", [["gpu", "haed"], ["tpu", "--tiny", "iterations"]])
def test_an_unknown_section_is_an_error_that_lists_them(arguments: list[str], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        command.main(arguments)
    said = capsys.readouterr().err
    assert f"{arguments[-1]}: no such section of {arguments[0]}_check; there are correctness, peaks, head" in said


ROWS = [
    {
        "section": "head",
        "name": "fwd",
        "shape": "N8",
        "implementation": "chunked",
        "ms": 13.0,
        "tflops": 650.0,
        "fraction": 0.004,
    },
    {"section": "head", "name": "fwd", "shape": "N8", "implementation": "reference", "ms": 10.0, "fraction": 0.915},
    {"section": "head", "name": "fwd", "shape": "N9", "implementation": "chunked", "skipped": "time"},
    {"section": "correctness", "name": "head", "ok": False, "worst": "logp 1.0e-02 of 5e-06"},
    {"section": "generate", "name": "sample", "implementation": "transformers", "failed": "ValueError: no"},
]


def test_table_compares_with_naive_and_says_what_is_missing():
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table(ROWS).splitlines()]
    head = lines[0]
    rows = [dict(zip(head, line, strict=True)) for line in lines[2:7]]
    assert [row["x naive"] for row in rows] == ["1.30", "1.00", "", "", ""]
    assert rows[0]["rate"] == "650 TFLOP/s" and rows[0]["ms"] == "13"
    assert rows[1]["of peak"] == "92 %" and rows[0]["of peak"] == "0.4 %"
    said = [row["note"] for row in rows[2:]]
    assert said == ["skipped: time", "WRONG: logp 1.0e-02 of 5e-06", "FAILED: ValueError: no"]
    assert summary(ROWS) == "5 rows, 0 right, 1 wrong, 1 failed, 1 skipped"


def test_saved_rows_are_shown_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "head.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS[:3]))
    assert command.main(["gpu", "--show", str(file)]) == 0
    assert "3 rows, 0 right, 0 wrong, 0 failed, 1 skipped" in capsys.readouterr().out


def test_a_test_that_finds_something_wrong_is_wrong():
    said = "..F\nFAILED tests/ops/test_masked.py::test_mean[a, b] - assert 1 == 2\n1 failed, 2 passed in 3.21s\n"
    failures = ["tests/ops/test_masked.py::test_mean[a, b]"]
    assert outcome(1, said) == {"ok": False, "worst": "1 failed, 2 passed in 3.21s", "failures": failures}
    assert outcome(0, "...\n3 passed in 1.00s\n") == {"ok": True, "worst": "3 passed in 1.00s"}


def test_a_test_that_could_not_run_has_failed_and_is_not_wrong():
    why = "RuntimeError: Unable to initialize backend 'tpu': libtpu.so is missing"
    said = f"E\nERROR tests/ops/test_masked.py::test_mean - {why}\n1 error in 0.1s\n"
    failures = ["tests/ops/test_masked.py::test_mean"]
    assert outcome(1, said) == {"failed": f"pytest ended with status 1: {why}", "failures": failures}
    said = "ImportError while loading conftest\nE   ModuleNotFoundError: No module named 'chex'\n"
    assert outcome(4, said) == {"failed": "pytest ended with status 4: ModuleNotFoundError: No module named 'chex'"}
    assert outcome(-11, "") == {"failed": "pytest ended with status -11: it said nothing"}


def small_case(**more) -> oracle.Case:
    rng = np.random.default_rng(0)
    return oracle.Case(
        hidden=rng.normal(size=(5, 4)),
        weight=rng.normal(size=(11, 4)),
        targets=np.array([0, 10, 3, 3, 7]),
        mask=np.array([True, True, False, True, True]),
        ref_hidden=rng.normal(size=(5, 4)),
        ref_weight=rng.normal(size=(11, 4)),
        **more,
    )


def test_values_of_the_oracle_by_hand():
    case = small_case()
    logits = case.hidden[1] @ case.weight.T
    p = np.exp(logits) / np.sum(np.exp(logits))
    ref = case.ref_hidden[1] @ case.ref_weight.T
    q = np.exp(ref) / np.sum(np.exp(ref))
    found = {name: field[1] for name, field in oracle.values(case).items()}
    assert found["logp"] == pytest.approx(np.log(p[10]))
    assert found["lse"] == pytest.approx(np.log(np.sum(np.exp(logits))))
    assert found["entropy"] == pytest.approx(-np.sum(p * np.log(p)))
    assert found["kl"] == pytest.approx(np.sum(p * np.log(p / q)))
    assert found["ref_logp"] == pytest.approx(np.log(q[10]))
    assert all(field[2] == 0 for field in oracle.values(case).values())


@pytest.mark.parametrize("more", [{}, {"softcap": 2.0, "temperature": 0.7, "bias": np.linspace(-1, 1, 11)}])
def test_gradients_of_the_oracle_are_finite_differences(more):
    case = small_case(**more)
    weights = {name: np.random.default_rng(2).normal(size=5) for name in ("logp", "lse", "entropy", "kl")}

    def total(**changed: np.ndarray) -> float:
        found = oracle.values(dataclasses.replace(case, **changed))
        return float(sum(np.sum(weights[name] * found[name]) for name in weights))

    for name, gradient in zip(("hidden", "weight"), oracle.gradients(case, weights), strict=True):
        direction = np.random.default_rng(3).normal(size=gradient.shape)
        array, step = getattr(case, name), 1e-6
        ahead, behind = (total(**{name: array + sign * step * direction}) for sign in (1, -1))
        assert np.sum(gradient * direction) == pytest.approx((ahead - behind) / (2 * step), rel=1e-6)
