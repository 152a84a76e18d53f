"""A Cloud Run service, as far as a budget may turn it off."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class ServiceScaling:
    """How many instances a service keeps, at the level of the service."""

    instances_min: int = 0
    instances_max: int = 0
    """0: whatever its revisions say."""
    instances_exactly: int | None = None
    """However many requests come; None: as many as they need."""

    @property
    def is_zero(self) -> bool:
        """Whether it is turned off."""
        return self.instances_exactly == 0

    def __str__(self) -> str:
        if self.instances_exactly is not None:
            return f"exactly {self.instances_exactly} instances"
        most = f" to {self.instances_max}" if self.instances_max else " or more"
        return f"{self.instances_min}{most} instances"


ZERO = ServiceScaling(instances_exactly=0)


@dataclass(frozen=True, kw_only=True, slots=True)
class RunService:
    """What is stored of one service, on the service itself."""

    name: str
    """`projects/P/locations/R/services/S`."""
    scaling: ServiceScaling
    kept: ServiceScaling | None = None
    """What it had before a freeze turned it off."""
    frozen_by: str = ""
    """The entry of that freeze."""
    version: str = ""
    """Of the service as it was read; it is written only as long as it has this one."""

    @property
    def short(self) -> str:
        return self.name.rsplit("/", 1)[-1]
