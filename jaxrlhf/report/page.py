"""A report as one text: it needs no other file, runs no script, and stays below a megabyte."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jaxrlhf
from jaxrlhf.report.cards import Detail, section
from jaxrlhf.report.comparison import comparison_page
from jaxrlhf.report.folder import RunRecord
from jaxrlhf.report.markup import Markup, document, tag
from jaxrlhf.report.single import single_page

MOST_BYTES = 1_000_000
"""Of a page: it goes through a mail, and opens at once."""

DETAILS = (
    Detail(points=150, characters=1200),
    Detail(points=100, characters=500),
    Detail(points=50, characters=200),
    Detail(points=20, characters=80),
)
"""What is tried, until the page is small enough."""


def report_page(runs: Sequence[RunRecord], left_out: Sequence[str] = ()) -> bytes:
    """Writes the page about a run, or about several beside each other.

    Args:
        runs: one or more.
        left_out: other runs of their folders, and why they are not among them.

    Returns:
        HTML in UTF-8, at most `MOST_BYTES` long. What is left out for it is said on the page.

    Raises:
        ValueError: if the runs are too many for a page.
    """
    size = 0
    for detail in DETAILS:
        page = _page(runs, left_out, detail)
        size = len(page)
        if size <= MOST_BYTES:
            return page
    raise ValueError(
        f"a report on {len(runs)} runs has {size:,} bytes at least, more than the {MOST_BYTES:,} of a page that opens "
        "at once; name fewer runs"
    )


def _page(runs: Sequence[RunRecord], left_out: Sequence[str], detail: Detail) -> bytes:
    body = single_page(runs[0], detail) if len(runs) == 1 else comparison_page(runs, detail)
    title = f"{runs[0].name} · {runs[0].method}" if len(runs) == 1 else f"Comparison of {len(runs)} runs"
    style = Path(__file__).with_name("style.css").read_text(encoding="utf-8")
    foot = tag("footer", f"jaxrlhf {jaxrlhf.__version__} · {', '.join(str(run.folder) for run in runs)}")
    written = document(title, style, tag("main", body, _left_out(left_out), foot))
    # Half a surrogate pair in an answer has no UTF-8; it is shown as JSON writes it.
    return written.encode("utf-8", errors="backslashreplace")


def _left_out(runs: Sequence[str]) -> Markup:
    return section("Runs left out", *(tag("p", run, class_="note") for run in runs))
