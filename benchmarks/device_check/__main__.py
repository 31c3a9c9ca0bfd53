"""Is the library right on this machine's accelerator, and how fast is it there, beside others?

Sections, all of them unless some are named:

    correctness  the head against float64, and the quick part of the test suite, with jax on the device
    peaks        bfloat16 and float32 products, copy bandwidth: what the others are divided by
    head         log-probabilities and gradients, beside jax and torch that keep the logits
    train        SFT steps of a 1.2B model, beside transformers
    generate     sampling from it at four batch sizes, beside transformers
    iterations   DPO, GRPO and PPO by phase (gpu_check alone)

No section takes more than four minutes, compilation included; what does not fit is a row that says so. Each runs in
processes of its own, and rows are in SECTION.jsonl as soon as they are known. The exit status is 1 if a result is wrong
or a part of a section did not end.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from benchmarks.device_check.runner import CACHE, ROOT, command_of, environment_of, is_wrong, run_sections
from benchmarks.device_check.sections import Platform, choose, sections_of
from benchmarks.device_check.sheet import Row, read_rows
from benchmarks.device_check.table import summary, table


def main(arguments: list[str]) -> int:
    """Runs sections and prints the table, or prints that of saved rows; returns the exit status."""
    platform, given = _parse(arguments)
    if given.show:
        return _print([row for path in given.show for row in read_rows(path)])
    folder = _folder(platform, given.out, tiny=given.tiny)
    names = choose(platform, given.sections, peaks_known=(folder / "peaks.jsonl").exists())
    parts = {name: sections_of(platform)[name] for name in names}
    command, environment = command_of(platform, folder, tiny=given.tiny), environment_of(platform, tiny=given.tiny)
    rows = run_sections(parts, folder, command, environment)
    (folder / "table.md").write_text(table(rows) + "\n", encoding="utf-8")
    return _print(rows)


def _parse(arguments: list[str]) -> tuple[Platform, Any]:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="device_check", description=__doc__, formatter_class=formatter)
    parser.add_argument("platform", choices=("gpu", "tpu"), help="what scripts/gpu_check and scripts/tpu_check give")
    parser.add_argument("sections", nargs="*", metavar="SECTION", help="see above")
    parser.add_argument("--tiny", action="store_true", help="shapes of a few dozen on the CPU, to try it out")
    parser.add_argument("--out", type=Path, help="folder of the rows; $OUT, or benchmarks/results/gpu_check")
    parser.add_argument("--show", nargs="+", type=Path, metavar="FILE", help="print the table of saved rows")
    given = parser.parse_intermixed_args(arguments)  # sections may follow options
    try:
        choose(given.platform, given.sections, peaks_known=True)
    except ValueError as error:
        parser.error(str(error))
    return given.platform, given


def _folder(platform: Platform, out: Path | None, *, tiny: bool) -> Path:
    if out is not None:
        return out
    if tiny:
        return CACHE / f"tiny_{platform}"
    return Path(os.environ.get("OUT") or ROOT / "benchmarks" / "results" / f"{platform}_check")


def _print(rows: list[Row]) -> int:
    print(f"\n{table(rows)}\n\n{summary(rows)}")
    return int(any(is_wrong(row) for row in rows))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
