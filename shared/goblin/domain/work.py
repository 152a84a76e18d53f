"""What a host is given: requests that need no key, and what to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Grant:
    """One request that somebody without a key may make for a while."""

    method: str
    url: str
    headers: Mapping[str, str]
    """To be sent word for word: they are part of what was signed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Assignment:
    """What an attempt has to do."""

    job_id: str
    attempt: int
    kind: str
    step: int
    """Items done by earlier attempts."""
    total: int
    checkpoint_every: int
    heartbeat_s: float
    dataset: Grant
    dataset_offset: int
    """Where the first item that is not done begins."""
    model: str | None
    """For items that name none."""
    parameters: Mapping[str, object]
