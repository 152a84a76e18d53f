"""A Cloud Run service, as far as a budget may scale it to zero."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class ServiceScaling:
    """The numbers of instances of a service, set at the level of the service."""

    instances_min: int = 0
    instances_max: int = 0
    """0: the limit of its revisions holds."""
    instances_exactly: int | None = None
    """A fixed number, independent of the load; None: Cloud Run scales with the load."""

    @property
    def is_zero(self) -> bool:
        """Whether the service is turned off."""
        return self.instances_exactly == 0

    def __str__(self) -> str:
        if self.instances_exactly is not None:
            return f"exactly {self.instances_exactly} instances"
        most = f" to {self.instances_max}" if self.instances_max else " or more"
        return f"{self.instances_min}{most} instances"


ZERO = ServiceScaling(instances_exactly=0)


@dataclass(frozen=True, kw_only=True, slots=True)
class RunService:
    """The state of one service, all of it stored on the service itself."""

    name: str
    """`projects/P/locations/R/services/S`."""
    scaling: ServiceScaling
    kept: ServiceScaling | None = None
    """Its scaling before a freeze scaled it to zero; None: no freeze did."""
    frozen_by: str = ""
    """The id of that freeze's entry."""
    version: str = ""
    """The version that was read. A write fails if the service has another one by then."""

    @property
    def short(self) -> str:
        return self.name.rsplit("/", 1)[-1]
