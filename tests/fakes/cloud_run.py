"""A fake of the scaling part of Cloud Run's Admin API v2: services, their versions, and operations that take a moment.

Source: the proto of google-cloud-run 0.16 and cloud.google.com/run/docs/configuring/services/manual-scaling, read
2026-11-26. Switching to manual scaling unsets the service's minimum and maximum. Switching back without giving them
sets both to the manual count. Annotations with names reserved by Google are refused.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tests.fakes.serving import Startable, run

AUTOMATIC, MANUAL = 1, 2
NUMBERS = ("minInstanceCount", "maxInstanceCount")
GOOGLES = ("run.googleapis.com/", "cloud.googleapis.com/", "serving.knative.dev/", "autoscaling.knative.dev/")


def refusal(status: int, code: str, message: str) -> Response:
    return JSONResponse({"error": {"code": status, "message": message, "status": code}}, status)


@dataclass
class FakeCloudRun(Startable):
    services: dict[str, dict[str, Any]] = field(default_factory=dict)
    updates: int = 0
    fail: list[int] = field(default_factory=list)
    """Statuses of the next requests, in order."""
    slow: bool = False
    """Operations are done when they are asked about."""
    meanwhile: Any = None
    """Called once, before the next update is looked at."""
    _numbers: Any = field(default_factory=lambda: itertools.count(1))
    _operations: dict[str, str] = field(default_factory=dict)

    def deploy(self, name: str, scaling: dict[str, int] | None = None, **annotations: str) -> None:
        """As a person would."""
        there = self.services.get(name, {"annotations": {}})
        annotations = {**there["annotations"], **annotations}
        self.services[name] = {"annotations": annotations, "scaling": scaling or {}, "etag": f'"{next(self._numbers)}"'}

    def scaling(self, name: str) -> dict[str, int]:
        found: dict[str, int] = self.services[name]["scaling"]
        return found

    @property
    def app(self) -> Starlette:  # type: ignore[override]
        path = "/v2/projects/{project}/locations/{region}"
        return Starlette(
            routes=[
                Route(path + "/services/{service}", self._service, methods=["GET", "PATCH"]),
                Route(path + "/operations/{operation}", self._operation),
            ]
        )

    async def _service(self, request: Request) -> Response:
        name = request.url.path.removeprefix("/v2/")
        if self.fail:
            return refusal(self.fail.pop(0), "UNAVAILABLE", "asked to fail")
        if name not in self.services:
            return refusal(404, "NOT_FOUND", f"Resource '{name}' was not found")
        if request.method == "GET":
            return JSONResponse(self._said(name))
        if self.meanwhile is not None:
            meanwhile, self.meanwhile = self.meanwhile, None
            meanwhile()
        return self._update(name, request.query_params.get("updateMask", ""), await request.json())

    def _update(self, name: str, mask: str, said: dict[str, Any]) -> Response:
        there = self.services[name]
        if said.get("etag") not in (None, "", there["etag"]):
            return refusal(409, "ABORTED", f"Conflict for resource '{name}': version does not match")
        wanted = mask.split(",")
        if any(key.startswith(GOOGLES) for key in said.get("annotations", {})):
            return refusal(400, "INVALID_ARGUMENT", "annotations of this namespace are not supported")
        if "annotations" in wanted:
            there["annotations"] = dict(said.get("annotations", {}))
        if "scaling" in wanted:
            there["scaling"] = _scaled(there["scaling"], said.get("scaling", {}))
        there["etag"] = f'"{next(self._numbers)}"'
        self.updates += 1
        project = "/".join(name.split("/")[:4])
        operation = f"{project}/operations/{next(self._numbers)}"
        self._operations[operation] = name
        return JSONResponse(self._told(operation, done=not self.slow))

    async def _operation(self, request: Request) -> Response:
        return JSONResponse(self._told(request.url.path.removeprefix("/v2/"), done=True))

    def _told(self, operation: str, *, done: bool) -> dict[str, Any]:
        if not done:
            return {"name": operation}
        service = {
            "@type": "type.googleapis.com/google.cloud.run.v2.Service",
            **self._said(self._operations[operation]),
        }
        return {"name": operation, "done": True, "response": service}

    def _said(self, name: str) -> dict[str, Any]:
        return {"name": name, "uid": "u", **self.services[name]}


def _scaled(before: dict[str, int], wanted: dict[str, int]) -> dict[str, int]:
    """As the API leaves out zeros, all but the manual count."""
    if wanted.get("scalingMode") == MANUAL:
        count = wanted.get("manualInstanceCount", before.get("minInstanceCount", 0))
        return {"scalingMode": MANUAL, "manualInstanceCount": count}
    limits = {name: wanted[name] for name in NUMBERS if wanted.get(name)}
    if not limits and (inherited := before.get("manualInstanceCount")):
        limits = dict.fromkeys(NUMBERS, inherited)
    return {"scalingMode": AUTOMATIC, **limits}


if __name__ == "__main__":
    run(FakeCloudRun())
