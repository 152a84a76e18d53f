"""Vast.ai's list of our instances, and the addresses of their servers.

Source: vast-ai/docs at 2026-08-07 and vastai 1.9.1, read 2026-11-23. Version 1 of the list has pages of 25; version 0
answers 410, which some clients took for "nothing is rented". Any error here means that the instances are unknown, never
that there are none. The API requires a second between two lists. Ports are mapped while an instance runs; addresses
come with stray whitespace.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from enum import StrEnum
from urllib.parse import quote, urlsplit

import httpx
import msgspec

from goblin.core.endpoints import Endpoint
from goblin.core.errors import Fault
from goblin.providers.common.http import Upstream
from goblin.providers.common.refusals import ErrorDetail, judge_gpu_host
from httpguard import whole_number

LIST_TIMEOUT_S = 4.0
PAGE = 25
PAGES_MAX = 20


class ServerState(StrEnum):
    """Whether an instance can serve requests."""

    RUNNING = "running"
    STARTING = "starting"
    GONE = "gone"
    """Stopped, outbid or unreachable."""


class Port(msgspec.Struct, frozen=True, kw_only=True, rename={"number": "HostPort"}):
    number: str | int = ""


class ServerInstance(msgspec.Struct, frozen=True, kw_only=True):
    """One row of the list."""

    id: int
    label: str | None = None
    actual_status: str | None = None
    intended_status: str | None = None
    public_ipaddr: str | None = None
    ports: dict[str, tuple[Port, ...] | None] | None = None

    @property
    def state(self) -> ServerState:
        if self.intended_status in ("stopped", "exited"):
            return ServerState.GONE  # Stopped or outbid. The list shows it a second before the container is told.
        if self.actual_status in (None, "created", "loading", "rebooting"):
            return ServerState.STARTING
        return ServerState.RUNNING if self.actual_status == "running" else ServerState.GONE


class InstancePage(msgspec.Struct, frozen=True, kw_only=True):
    instances: tuple[ServerInstance, ...]
    success: bool = True
    next_token: str | None = None


class VastInstances:
    """The instances of one account that carry one label."""

    def __init__(self, endpoint: Endpoint, client: httpx.AsyncClient, *, label: str) -> None:
        self._api = Upstream(endpoint.name, endpoint.url, endpoint.account_key, client, judge=judge)
        self._label = label
        host = urlsplit(endpoint.url).hostname or ""
        self._local = host == "localhost" or _is_loopback(host)

    async def all(self) -> Sequence[ServerInstance]:
        """List all instances with the label. Raises `ProviderUnavailable` when the list is incomplete or unreadable."""
        found: list[ServerInstance] = []
        token: str | None = None
        for _ in range(PAGES_MAX):
            answer = await self._api.json("GET", self._path(token), timeout_s=LIST_TIMEOUT_S)
            page = self._api.convert(answer, InstancePage)
            if not page.success:
                raise self._api.nonsense()
            found += [instance for instance in page.instances if instance.label == self._label]
            token = page.next_token
            if not token:
                return found
        raise self._api.nonsense()

    def address(self, instance: ServerInstance, port: int, scheme: str) -> str | None:
        """Build the base URL of a server on an instance; None while it has no usable address.

        The list is untrusted: an address inside our own network is rejected.
        """
        mapped = (instance.ports or {}).get(f"{port}/tcp") or ()
        number = whole_number(str(mapped[0].number), 65_535) if mapped else None
        try:
            host = ipaddress.ip_address((instance.public_ipaddr or "").strip())
        except ValueError:
            return None
        if not number:
            return None
        if not host.is_global and not (self._local and host.is_loopback):
            return None
        return f"{scheme}://{f'[{host}]' if host.version == 6 else host}:{number}"

    def _path(self, token: str | None) -> str:
        wanted = msgspec.json.encode({"label": {"eq": self._label}}).decode()
        order = msgspec.json.encode([{"col": "id", "dir": "asc"}]).decode()
        query = {"limit": str(PAGE), "select_filters": wanted, "order_by": order}
        if token:
            query["after_token"] = token
        # The API requires the trailing slash.
        return "/api/v1/instances/?" + "&".join(f"{name}={quote(value, safe='')}" for name, value in query.items())


def judge(status: int, detail: ErrorDetail) -> Fault | None:
    """Find the fault of a refusal: a bad key may come as 404, the old list as 410, and low credit only as text."""
    if detail.code == "auth_error" or "invalid user key" in detail.message.lower():
        return Fault.AUTH
    if "low_credit" in detail.code or "insufficient_credit" in detail.code:
        return Fault.MONEY
    return judge_gpu_host(status, detail) or Fault.TRANSIENT


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
