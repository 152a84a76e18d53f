"""Validation of a create request: violations of the schema answer 422, broken rules across fields 400."""

from __future__ import annotations

import re
from typing import Annotated, Literal, TypeVar

import msgspec
from msgspec import UNSET, Meta, UnsetType

from localgpus.runpod.pods import Cloud

Version = Annotated[str, Meta(pattern=r"^\d+\.\d+$")]
Positive = Annotated[int, Meta(ge=1)]


class _Strict(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A struct whose unknown fields are violations."""


class GpuWanted(_Strict):
    id: str
    count: Positive | UnsetType = UNSET
    allowedCudaVersions: list[Version] = []  # noqa: N815  The wire's names.
    minCudaVersion: Version | None = None  # noqa: N815
    minRamPerGpu: Positive | None = None  # noqa: N815
    minVcpuCountPerGpu: Positive | None = None  # noqa: N815


class CpuWanted(_Strict):
    id: str
    vcpuCount: Positive = 2  # noqa: N815


class Persistent(_Strict):
    size: Annotated[int, Meta(ge=10)]
    path: str


class Network(_Strict):
    volumeId: str  # noqa: N815
    path: str


class Mounts(_Strict):
    persistent: Persistent | None = None
    network: Annotated[list[Network], Meta(max_length=1)] = []


class Create(_Strict):
    """The body of `POST /pods`: the schema's fields, and a few that clients have found since."""

    name: Annotated[str, Meta(min_length=1)]
    image: str = ""
    cloud: Cloud = Cloud.SECURE
    gpu: GpuWanted | None = None
    cpu: CpuWanted | None = None
    args: str = ""
    entrypoint: list[str] = []
    cmd: list[str] = []
    disk: Positive = 20
    env: dict[str, str] = {}
    ports: list[Annotated[str, Meta(pattern=r"^\d{1,5}/(tcp|http|udp)$")]] = []
    registry: str | None = None
    dataCenterIds: list[str] = []  # noqa: N815
    mounts: Mounts = msgspec.field(default_factory=Mounts)
    globalNetworking: bool = False  # noqa: N815
    startJupyter: bool = False  # noqa: N815
    startSsh: bool = False  # noqa: N815
    templateId: Annotated[str, Meta(min_length=1)] | None = None  # noqa: N815


class Act(_Strict):
    """The body of `POST /pods/{id}/action`."""

    action: Literal["start", "stop", "restart", "terminate"]


class Invalid(Exception):
    """422: the body violates the schema."""

    def __init__(self, violations: list[str]) -> None:
        super().__init__(violations[0])
        self.violations = violations


_UNKNOWN = re.compile(r"unknown field `(?P<field>[^`]*)`")


T = TypeVar("T")


def read(body: bytes, kind: type[T]) -> T:
    """Parse a body strictly.

    Raises:
        Invalid: The body violates the schema; worded as RunPod words it.
        msgspec.DecodeError: The body is no JSON.
    """
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        said, _, path = str(error).partition(" - at `")
        where = path.rstrip("`") or "$"
        if unknown := _UNKNOWN.search(said):
            said = f"additional properties '{unknown['field']}' not allowed"
        raise Invalid([f"{where}: {said}"]) from error


def broken_rule(body: Create) -> str | None:
    """Return the first rule across fields that the body breaks; None if it breaks none."""
    mounts = body.mounts
    if (body.gpu is None) == (body.cpu is None):
        return "exactly one of gpu or cpu must be set"
    if not body.image and body.templateId is None:
        return "image is required unless templateId is set"
    if mounts.persistent is not None and mounts.network:
        return "at most one of mounts.persistent or mounts.network may be set"
    if body.cpu is not None and mounts.persistent is not None:
        return "mounts.persistent is not supported on CPU pods"
    if body.gpu is not None and body.gpu.allowedCudaVersions and body.gpu.minCudaVersion:
        return "gpu.allowedCudaVersions and gpu.minCudaVersion are mutually exclusive"
    if mounts.network:
        return "network volume not found"
    if body.registry is not None:
        return "registry not found"
    return None
