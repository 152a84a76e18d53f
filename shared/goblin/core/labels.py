"""Labels of rented instances: which instances are ours, and which job each belongs to."""

from __future__ import annotations

import re

LABEL_PREFIX = "goblin-"
"""Instances without a label of the form of `attempt_label` are not ours: never listed, never touched."""


def attempt_label(job_id: str, attempt: int) -> str:
    """Build the label of an attempt's instance. Each attempt has its own, so that an old instance is recognised."""
    return f"{LABEL_PREFIX}{job_id}-a{attempt}"


_LABEL = re.compile(rf"^{LABEL_PREFIX}(?P<job_id>[A-Za-z0-9][A-Za-z0-9._-]{{0,127}})-a[1-9][0-9]{{0,8}}\Z")


def is_attempt_label(label: str | None) -> bool:
    """Tell whether a label is an attempt's. Other instances are left alone, those that serve models included."""
    return label is not None and _LABEL.match(label) is not None


def job_of_label(label: str) -> str:
    """Return the job id in a label; for a label that is not an attempt's, `-`, which is no job's id."""
    found = _LABEL.match(label)
    return found["job_id"] if found else "-"
