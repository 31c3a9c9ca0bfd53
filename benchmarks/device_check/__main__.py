"""Is the library right on this machine's accelerator, and how fast is it there, beside others?

Sections, all of them unless some are named:

    correctness  the head and attention against float64, and the quick part of the test suite, with jax on the device
    peaks        bfloat16 and float32 products, copy bandwidth: what the others are divided by
    head         log-probabilities and gradients, beside jax and torch that keep the logits
    train        SFT steps of a 1.2B model, beside transformers
    generate     sampling from it at four batch sizes, beside transformers
    iterations   DPO, GRPO and PPO by phase (gpu_check alone)

No section takes more than four minutes, compilation included; what does not fit is a row that says so. Each runs in
processes of its own, and rows are in SECTION.jsonl as soon as they are known. The exit status is 1 if a result is wrong
or a part of a section did not end, and 2 if nothing could begin, without the device say.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from benchmarks.device_check.presence import why_absent
from benchmarks.device_check.runner import CACHE, ROOT, Run, command_of, environment_of, is_wrong, run_sections
from benchmarks.device_check.sections import Platform, choose, sections_of
from benchmarks.device_check.sheet import Row, read_rows
from benchmarks.device_check.stopping import Stopped, stops_raised
from benchmarks.device_check.table import summary, table


def main(arguments: list[str]) -> int:
    """Runs sections and prints the table, or prints that of saved rows; returns the exit status."""
    platform, given = _parse(arguments)
    if given.show:
        return _print(given.show)
    environment = environment_of(platform, tiny=given.tiny)
    try:
        with stops_raised():
            why = None if given.tiny else why_absent(platform, environment)
            if why is not None:
                print(f"scripts/{platform}_check: {why}; --tiny tries the check out on a CPU", file=sys.stderr)
                return 2
            run = _run(platform, given, environment)
    except Stopped as stop:  # before or after all sections
        return stop.status
    status = _print(run.rows)
    return status if run.stopped is None else run.stopped.status


def _run(platform: Platform, given: argparse.Namespace, environment: dict[str, str]) -> Run:
    """Runs the sections and writes the table."""
    folder = _folder(platform, given.out, tiny=given.tiny)
    names = choose(platform, given.sections, peaks_known=(folder / "peaks.jsonl").exists())
    parts = {name: sections_of(platform)[name] for name in names}
    run = run_sections(parts, folder, command_of(platform, folder, tiny=given.tiny), environment)
    (folder / "table.md").write_text(table(run.rows) + "\n", encoding="utf-8")
    return run


def _parse(arguments: list[str]) -> tuple[Platform, argparse.Namespace]:
    """The platform, which the scripts give first, and what the user gave; `show` as rows."""
    opening = argparse.ArgumentParser(prog="python -m benchmarks.device_check", usage="%(prog)s {gpu,tpu} ...")
    opening.add_argument("platform", choices=("gpu", "tpu"), help="what scripts/gpu_check and scripts/tpu_check give")
    platform: Platform = opening.parse_args(arguments[:1]).platform
    parser = _parser(platform)
    given = parser.parse_intermixed_args(arguments[1:])  # sections may follow options
    try:
        choose(platform, given.sections, peaks_known=True)
        if given.show and (given.sections or given.tiny or given.out):
            raise ValueError("--show runs nothing; name no sections, --tiny or --out beside it")
        given.show = [row for path in given.show or () for row in _saved(path)]
    except ValueError as error:
        parser.error(str(error))
    return platform, given


def _parser(platform: Platform) -> argparse.ArgumentParser:
    formatter, prog = argparse.RawDescriptionHelpFormatter, f"scripts/{platform}_check"
    parser = argparse.ArgumentParser(prog=prog, description=__doc__, formatter_class=formatter)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"of {', '.join(sections_of(platform))}")
    parser.add_argument("--tiny", action="store_true", help="shapes of a few dozen on the CPU, to try it out")
    where = f"$OUT, else benchmarks/results/{platform}_check; .cache/device_check/tiny_{platform} if tiny"
    parser.add_argument("--out", type=_folder_name, metavar="FOLDER", help=f"where rows go; {where}")
    shown = "print the table of saved rows, and run nothing"
    parser.add_argument("--show", nargs="+", type=Path, metavar="FILE", help=shown)
    return parser


def _folder_name(text: str) -> Path:
    """A path at which there is a folder or nothing."""
    path = Path(text)
    if path.exists() and not path.is_dir():
        raise argparse.ArgumentTypeError(f"{path} is a file; expected a folder, which need not exist")
    return path


def _saved(path: Path) -> list[Row]:
    """The rows of a file that the user named.

    Raises:
        ValueError: as `read_rows`, and if there are none.
    """
    rows = read_rows(path)
    if not rows:
        raise ValueError(f"{path}: no rows; expected a file SECTION.jsonl that a check wrote")
    return rows


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
