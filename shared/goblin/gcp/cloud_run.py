"""Cloud Run's Admin API: the scaling of a service.

A service whose scaling is `MANUAL` with 0 instances is turned off: requests get an error, no instance starts, and no
revision is made. Its former scaling is kept in an annotation of the service. One update writes both, on condition of
the version that was read, so that a crash cannot separate them.
Source: cloud.google.com/run/docs/configuring/services/manual-scaling and the proto of google-cloud-run 0.16, read
2026-11-26. The client is synchronous here: its calls are rare, and run in a thread. Importing it takes 80 ms.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
from google.api_core.exceptions import Aborted, Conflict, FailedPrecondition, GoogleAPICallError, NotFound, RetryError
from google.api_core.exceptions import Forbidden as PermissionRefused
from google.auth.exceptions import GoogleAuthError

from goblin.billing.domain.run_service import RunService, ServiceScaling
from goblin.core import decoding, errors
from goblin.core.errors import Broken, Fault, ProviderUnavailable

DEADLINE_S = 8.0
DONE_S_MAX = 20.0
"""The longest that an accepted update may take to complete."""
KEPT = "goblin-scaled-to-zero"
"""Name of the annotation that holds the former scaling."""
FIELDS = ["scaling", "annotations"]
T = TypeVar("T")


class _ScalingBefore(msgspec.Struct, frozen=True, kw_only=True):
    """The content of the annotation."""

    frozen_by: str
    had: ServiceScaling


class CloudRun:
    """The port `ServiceScaler`. The client is created on first use."""

    def __init__(self, *, emulator: str = "") -> None:
        """Set the address of the API: `http://host:port` of an emulator, or empty for Google's."""
        self._emulator = emulator
        self._client: Any = None

    async def read(self, name: str) -> RunService:
        return await self._ask(name, lambda: parse_service(self._get(name)))

    async def write(self, service: RunService) -> None:
        await self._ask(service.name, lambda: self._update(service))

    def _get(self, name: str) -> Any:
        return self._connected().get_service(name=name, timeout=DEADLINE_S, retry=None)

    def _update(self, service: RunService) -> None:
        from google.cloud import run_v2

        there = self._get(service.name)
        if there.etag != service.version:
            raise Conflict(f"{service.name} has changed.")
        annotations = {key: value for key, value in there.annotations.items() if key != KEPT}
        if service.kept is not None:
            kept = _ScalingBefore(frozen_by=service.frozen_by, had=service.kept)
            annotations[KEPT] = msgspec.json.encode(kept).decode()
        manual = service.scaling.instances_exactly
        modes = run_v2.ServiceScaling.ScalingMode
        scaling = run_v2.ServiceScaling(
            scaling_mode=modes.AUTOMATIC if manual is None else modes.MANUAL,
            min_instance_count=service.scaling.instances_min,
            max_instance_count=service.scaling.instances_max,
            manual_instance_count=manual,
        )
        new = run_v2.Service(name=service.name, annotations=annotations, scaling=scaling, etag=service.version)
        request = run_v2.UpdateServiceRequest(service=new, update_mask={"paths": FIELDS})
        self._connected().update_service(request, timeout=DEADLINE_S, retry=None).result(timeout=DONE_S_MAX)

    def _connected(self) -> Any:
        if self._client is None:
            from google.api_core.client_options import ClientOptions
            from google.auth.credentials import AnonymousCredentials
            from google.cloud import run_v2

            said: dict[str, Any] = {}
            if self._emulator:
                options = ClientOptions(api_endpoint=self._emulator)
                said = {"credentials": AnonymousCredentials(), "client_options": options}
            self._client = run_v2.ServicesClient(transport="rest", **said)
        return self._client

    async def _ask(self, name: str, call: Callable[[], T]) -> T:
        try:
            return await asyncio.to_thread(call)
        except (Aborted, Conflict, FailedPrecondition) as error:
            raise errors.Conflict(
                f"Cloud Run service {name} was changed by another client at the same time."
            ) from error
        except (PermissionRefused, NotFound, GoogleAuthError) as error:
            raise ProviderUnavailable(
                f"Cloud Run service {name} cannot be read or changed: {type(error).__name__}.", fault=Fault.AUTH
            ) from error
        except (GoogleAPICallError, RetryError, TimeoutError, OSError) as error:
            raise ProviderUnavailable(f"Cloud Run did not answer for {name}: {type(error).__name__}.") from error


def parse_service(said: Any) -> RunService:
    """Convert a `run_v2.Service` to our type. Raises `Broken` when our annotation on it cannot be read."""
    kept = None
    if text := said.annotations.get(KEPT):
        kept = decoding.decode(text, _ScalingBefore, lambda why: Broken(
            f"{said.name}: the annotation {KEPT} cannot be read: {why}. Set the scaling by hand and remove it."
        ))  # fmt: skip
    manual = None
    if said.scaling.scaling_mode == type(said.scaling).ScalingMode.MANUAL:
        manual = said.scaling.manual_instance_count or 0
    return RunService(
        name=said.name,
        scaling=ServiceScaling(
            instances_min=said.scaling.min_instance_count,
            instances_max=said.scaling.max_instance_count,
            instances_exactly=manual,
        ),
        kept=kept.had if kept else None,
        frozen_by=kept.frozen_by if kept else "",
        version=said.etag,
    )
