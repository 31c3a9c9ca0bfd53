"""What looks wrong in a run, and what to do about it. A finding is a hint: the thresholds are rules of thumb."""

from __future__ import annotations

from jaxrlhf.report import findings_answers, findings_records, findings_training
from jaxrlhf.report.finding import Finding
from jaxrlhf.report.folder import RunRecord

LOOKS = (*findings_training.LOOKS, *findings_answers.LOOKS, *findings_records.LOOKS)
"""What is looked for, in the order in which it is told."""


def findings_of(run: RunRecord) -> list[Finding]:
    """Looks for what often goes wrong; the grave before the rest."""
    found = [finding for look in LOOKS for finding in look(run)]
    return sorted(found, key=lambda finding: finding.level != "problem")
