"""The rows as one table."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from benchmarks.device_check.sheet import Row

NAIVE = "reference"
"""The implementation that times of the section `head` are a multiple of: jax with the logits in memory."""


def table(rows: Sequence[Row]) -> str:
    """All rows in aligned columns, and beneath them the devices and versions that they are from."""
    times = {_task(row): row["ms"] for row in rows if row.get("implementation") == NAIVE and "ms" in row}
    columns: dict[str, Callable[[Row], str]] = {
        "section": lambda row: row["section"],
        "name": lambda row: row.get("name", ""),
        "shape": lambda row: row.get("shape", ""),
        "dtype": lambda row: row.get("dtype", ""),
        "implementation": lambda row: row.get("implementation", ""),
        "ms": lambda row: _number(row, "ms"),
        "x naive": lambda row: f"{row['ms'] / times[_task(row)]:.2f}" if "ms" in row and _task(row) in times else "",
        "rate": _rate,
        "of peak": lambda row: _percent(row["fraction"]) if "fraction" in row else "",
        "tokens/s": lambda row: _number(row, "tokens_per_s"),
        "temp MiB": lambda row: _number(row, "temp_mib"),
        "peak MiB": lambda row: _number(row, "peak_mib"),
        "note": note,
    }
    cells = [list(columns), *([read(row) for read in columns.values()] for row in rows)]
    return "\n".join([*_aligned(cells), "", *_sources(rows)])


def note(row: Row) -> str:
    """What numbers do not say: right or wrong, left out, failed."""
    if "failed" in row:
        return f"FAILED: {row['failed'][:100]}"
    if "skipped" in row:
        return f"skipped: {row['skipped']}"
    said = {None: "", True: "right: ", False: "WRONG: "}[row.get("ok")]
    return said + row.get("worst", "")


def summary(rows: Sequence[Row]) -> str:
    """How many rows there are of each kind."""
    counts = {
        "rows": len(rows),
        "right": sum(row.get("ok") is True for row in rows),
        "wrong": sum(row.get("ok") is False for row in rows),
        "failed": sum("failed" in row for row in rows),
        "skipped": sum("skipped" in row for row in rows),
    }
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def _task(row: Row) -> tuple[str, ...]:
    return (row["section"], row.get("name", ""), row.get("shape", ""))


def _number(row: Row, name: str) -> str:
    """Three digits at least, none where there is no number."""
    if name not in row:
        return ""
    value = row[name]
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"


def _percent(fraction: float) -> str:
    percent = 100 * fraction
    return f"{percent:.0f} %" if percent >= 10 else f"{percent:.1f} %"


def _rate(row: Row) -> str:
    """One rate, or both where a row has them: the ceilings."""
    units = (("tflops", "TFLOP/s"), ("gbs", "GB/s"))
    return ", ".join(f"{_number(row, name)} {unit}" for name, unit in units if name in row)


def _aligned(cells: list[list[str]]) -> list[str]:
    widths = [max(len(line[place]) for line in cells) for place in range(len(cells[0]))]
    lines = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in cells]
    lines.insert(1, ["-" * width for width in widths])
    return [f"| {' | '.join(line)} |" for line in lines]


def _sources(rows: Sequence[Row]) -> list[str]:
    found = {}
    for row in rows:
        if "device" in row:
            packages = ", ".join(f"{name} {version}" for name, version in row.get("versions", {}).items())
            found[f"{row['device']}: {packages}"] = None
    return list(found)
