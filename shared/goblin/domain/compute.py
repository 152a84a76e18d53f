"""What we rent and what a provider says is there."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

LABEL_PREFIX = "goblin-"
"""Instances whose label starts otherwise are not ours: never listed, never touched."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """One instance to rent, for one attempt of one job."""

    label: str
    """Says whose it is, also to a later look that knows nothing else; see `attempt_label`."""
    kind: str
    environment: dict[str, str]
    """All that the instance is told: where the controller is, and its attempt token."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Instance:
    """A rented machine (or process) that exists, its bill running."""

    provider: str
    instance_id: str
    label: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Known:
    """A whole, current inventory."""

    instances: frozenset[Instance]

    def by_label(self) -> dict[str, Instance]:
        """The instances by their labels."""
        return {instance.label: instance for instance in self.instances}


@dataclass(frozen=True, kw_only=True, slots=True)
class Unknown:
    """The provider could not say. Not the same as nothing: nothing is launched or destroyed on it."""

    reason: str


Inventory = Known | Unknown


@dataclass(frozen=True, kw_only=True, slots=True)
class Lease:
    """One attempt's right to work on a job, and the instance it works on.

    Written before the instance is asked for, so that no instance exists that no document names.
    """

    provider: str
    label: str
    token_sha256: str
    """The fencing token's digest; the token itself is known only to the instance."""
    placed_at: datetime
    until: datetime
    """Until then the attempt may be silent: first to start, then between heartbeats."""
    instance_id: str | None = None
    """None until the provider named it."""
    resumed_step: int = 0
    """The checkpoint that the attempt started from: without a later one it made no progress."""
    key_until: datetime | None = None
    """When its key for inference expires unless renewed."""


def attempt_label(job_id: str, attempt: int) -> str:
    """The name of an attempt's instance; a new attempt has a new one, so an old instance is told apart."""
    return f"{LABEL_PREFIX}{job_id}-a{attempt}"


def job_of_label(label: str) -> str:
    """Whose instance it is; of a label that is not an attempt's, a job that does not exist."""
    job_id, _, _ = label.removeprefix(LABEL_PREFIX).rpartition("-a")
    return job_id or "-"
