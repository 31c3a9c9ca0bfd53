"""A run, or several compared, as one HTML page that needs nothing else: no network, no scripts."""

from jaxrlhf.report.folder import Found, RunRecord, Runs, find_runs, read_runs
from jaxrlhf.report.page import report_page

__all__ = ["Found", "RunRecord", "Runs", "find_runs", "read_runs", "report_page"]
