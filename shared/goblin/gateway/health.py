"""Endpoint health: probed on a schedule, stored, and used by the router until it is too old."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from goblin.core.endpoints import Endpoint
from goblin.core.errors import StoreUnavailable
from goblin.core.ports import Clock
from goblin.gateway.domain.catalog import Catalog
from goblin.gateway.domain.endpoint_health import EndpointHealth, Finding, Pause, Probe
from goblin.gateway.policy import health as policy
from goblin.gateway.ports import ChatProvider, HealthStore

log = logging.getLogger(__name__)

REFRESH_S = 10.0
LOOK_AGAIN_S = 5.0
PROBE_DEADLINE_S = 10.0
"""A backstop: adapters should have a shorter timeout of their own."""


@dataclass(kw_only=True, slots=True)
class HealthDeps:
    catalog: Catalog
    """Replaced as a whole when `goblin.toml` has changed."""
    providers: Mapping[str, ChatProvider]
    """By endpoint name."""
    store: HealthStore
    clock: Clock


async def check_all(deps: HealthDeps) -> list[EndpointHealth]:
    """Probe every configured endpoint concurrently, judge and store. One that hangs or fails does not delay the others.

    What did not change is stored only every few minutes: each write costs money, and idle should cost next to nothing.

    Raises:
        StoreUnavailable: Raised after all endpoints were probed and all possible writes were done.
    """
    before = await deps.store.all()
    probes = await asyncio.gather(*(_probe(deps.providers[endpoint.name]) for endpoint in deps.catalog.endpoints))
    now = deps.clock.now()
    judged = [
        policy.judge(endpoint, before.get(endpoint.name), probe, now=now)
        for endpoint, probe in zip(deps.catalog.endpoints, probes, strict=True)
    ]
    for health in judged:
        old = before.get(health.endpoint)
        if old is None or old.status is not health.status:
            was = "new" if old is None else old.status
            log.info("%s: %s -> %s %s", health.endpoint, was, health.status, health.reason)
    changed = [health for health in judged if policy.must_store(before.get(health.endpoint), health)]
    written = await asyncio.gather(*(deps.store.put(health) for health in changed), return_exceptions=True)
    for outcome in written:
        if isinstance(outcome, BaseException):
            raise outcome
    return judged


async def _probe(provider: ChatProvider) -> Probe:
    try:
        async with asyncio.timeout(PROBE_DEADLINE_S):
            return await provider.probe()
    except TimeoutError:
        return Probe(finding=Finding.FAILED, reason=f"no answer in {PROBE_DEADLINE_S:.0f} s")
    except Exception as error:
        log.exception("A probe raised an unexpected error.")
        return Probe(finding=Finding.UNCLEAR, reason=f"the probe failed: {type(error).__name__}")


class HealthView:
    """The router's view of endpoint health: a copy of the store, refreshed in the background."""

    def __init__(self, deps: HealthDeps) -> None:
        self._deps = deps
        self._stored: dict[str, EndpointHealth] = {}
        self._seen: dict[str, EndpointHealth] = {}
        """Health from probes of this process itself."""
        self._read_at: float | None = None
        self._looked_at: float | None = None
        self._refreshing: asyncio.Task[None] | None = None
        self._pauses: dict[tuple[str, str, str | None], tuple[str, Pause]] = {}
        """Pauses to write for other processes; only the newest for each endpoint, model and class."""
        self._telling: asyncio.Task[None] | None = None
        self.believe: Callable[[Endpoint, tuple[Pause, ...]], None] | None = None
        """Called with the pauses of each endpoint whenever the store was read."""
        self._looking: asyncio.Task[None] | None = None

    async def current(self) -> dict[str, EndpointHealth]:
        """Return the health of every configured endpoint, in the order of the file. Never raises."""
        age_s = None if self._read_at is None else self._deps.clock.monotonic() - self._read_at
        if age_s is None or age_s > REFRESH_S:
            if self._refreshing is None or self._refreshing.done():
                self._refreshing = asyncio.create_task(self._refresh())
            if age_s is None:
                await asyncio.shield(self._refreshing)
        return self._believed()

    async def fresh(self) -> dict[str, EndpointHealth]:
        """Return the same, read from the store now: for callers that can wait."""
        await self._refresh()
        return self._believed()

    async def look(self) -> dict[str, EndpointHealth]:
        """Probe the endpoints whose models must be discovered, when a request names a model that no endpoint has.

        Right after a start, or when a model was just added, the scheduled check has not run yet. Probes at most once in
        `LOOK_AGAIN_S`, however many requests call it.
        """
        recently = self._looked_at is not None and self._deps.clock.monotonic() - self._looked_at < LOOK_AGAIN_S
        if self._looking is None or (self._looking.done() and not recently):
            self._looking = asyncio.create_task(self._look())
        await asyncio.shield(self._looking)
        return self._believed()

    def tell(self, endpoint: str, pause: Pause) -> None:
        """Write a pause for other processes, in the background. It is advice, and may be lost."""
        self._pauses[endpoint, pause.model, pause.kind] = endpoint, pause
        if self._telling is None or self._telling.done():
            self._telling = asyncio.create_task(self._tell())

    async def _tell(self) -> None:
        while self._pauses:
            endpoint, pause = self._pauses.pop(next(iter(self._pauses)))
            try:
                await self._deps.store.pause(endpoint, pause)
            except StoreUnavailable as error:
                log.warning("Pause of endpoint %s was not stored: %s", endpoint, error.message)

    async def _look(self) -> None:
        endpoints = [e for e in self._deps.catalog.endpoints if e.models is None]
        probes = await asyncio.gather(*(_probe(self._deps.providers[e.name]) for e in endpoints))
        now = self._deps.clock.now()
        for endpoint, probe in zip(endpoints, probes, strict=True):
            self._seen[endpoint.name] = policy.judge(endpoint, self._newest(endpoint), probe, now=now)
        self._looked_at = self._deps.clock.monotonic()

    async def _refresh(self) -> None:
        try:
            self._stored = dict(await self._deps.store.all())
        except StoreUnavailable as error:
            # Health is advice: requests go on without it, and the breakers learn from each attempt.
            log.warning("Endpoint health was not read: %s", error.message)
        else:
            self._pass_on()
        self._read_at = self._deps.clock.monotonic()

    def _pass_on(self) -> None:
        if self.believe is None:
            return
        for endpoint in self._deps.catalog.endpoints:
            stored = self._stored.get(endpoint.name)
            if stored is not None and stored.pauses:
                self.believe(endpoint, stored.pauses)

    def _believed(self) -> dict[str, EndpointHealth]:
        now = self._deps.clock.now()
        return {
            endpoint.name: policy.believe(endpoint, self._newest(endpoint), now=now)
            for endpoint in self._deps.catalog.endpoints
        }

    def _newest(self, endpoint: Endpoint) -> EndpointHealth | None:
        stored, seen = self._stored.get(endpoint.name), self._seen.get(endpoint.name)
        if stored is None or seen is None:
            return stored or seen
        if stored.checked_at is None or seen.checked_at is None:
            return stored
        return seen if seen.checked_at > stored.checked_at else stored
