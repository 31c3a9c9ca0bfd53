"""`jaxrlhf report`: a run, or several compared, as one HTML page."""

from __future__ import annotations

import logging
from pathlib import Path

from jaxrlhf.commands.config import ReportConfig
from jaxrlhf.commands.files import write_bytes
from jaxrlhf.report import find_runs, read_runs, report_page

log = logging.getLogger(__name__)

FILE = "report.html"
"""The name of the page where `out` does not say."""


def run(config: ReportConfig) -> Path:
    """Writes the page, in place of an earlier one.

    Args:
        config: folders and file.

    Returns:
        The file: `report.html` in the folder if a single one is given and no file.

    Raises:
        ValueError: if a folder is no run, or the files of a run that was named itself cannot be read.
    """
    runs, left_out = read_runs(find_runs(config.runs))
    page = report_page(runs, left_out)
    path = Path(config.runs[0]) / FILE if config.out is None else Path(config.out)
    write_bytes(path, page)
    for problem in (*left_out, *(problem for run in runs for problem in run.problems)):
        log.warning("left out %s", problem)
    log.info("wrote %s (%d kB): %s", path, len(page) // 1000, ", ".join(run.name for run in runs))
    return path
