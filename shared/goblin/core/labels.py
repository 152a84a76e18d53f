"""Labels of rented instances: which are ours, and whose."""

from __future__ import annotations

import re

LABEL_PREFIX = "goblin-"
"""Instances that are not labelled as `attempt_label` does are not ours: never listed, never touched."""


def attempt_label(job_id: str, attempt: int) -> str:
    """The name of an attempt's instance; a new attempt has a new one, so an old instance is told apart."""
    return f"{LABEL_PREFIX}{job_id}-a{attempt}"


_LABEL = re.compile(rf"^{LABEL_PREFIX}(?P<job_id>[A-Za-z0-9][A-Za-z0-9._-]{{0,127}})-a[1-9][0-9]{{0,8}}\Z")


def is_attempt_label(label: str | None) -> bool:
    """Whether an instance so labelled is an attempt's; all others are left alone, those that serve models too."""
    return label is not None and _LABEL.match(label) is not None


def job_of_label(label: str) -> str:
    """Whose instance it is; of a label that is not an attempt's, a job that does not exist."""
    found = _LABEL.match(label)
    return found["job_id"] if found else "-"
