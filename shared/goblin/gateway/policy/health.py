"""Judge the health of an endpoint by its probes: one probe alone makes it neither unhealthy nor healthy again."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

from goblin.core.endpoints import Endpoint
from goblin.gateway.domain.endpoint_health import EndpointHealth, Finding, Probe, Status, Warmth

FAILURES_TO_CONDEMN = 2
SLOW_MS = 2000
STALE_AFTER = timedelta(minutes=5)
"""Age at which health is not believed any more."""
STORE_AGAIN_AFTER = timedelta(seconds=150)
"""Age at which unchanged health is stored again. With a check each minute it is stored every three minutes, and stays
below `STALE_AFTER` even if one check is missed."""


def judge(endpoint: Endpoint, before: EndpointHealth | None, probe: Probe, *, now: datetime) -> EndpointHealth:
    """Update the health of an endpoint after one more probe.

    One failure of a healthy endpoint makes it degraded, the second unhealthy; the first success after that makes it
    degraded, the second healthy. When the endpoint itself reports that it is loading or refuses our key, it is
    unhealthy at once.
    """
    if before is None:
        before = unseen(endpoint)
    well = probe.finding is Finding.OK
    wrong = probe.finding in (Finding.FAILED, Finding.REFUSED)
    seen = replace(
        before,
        provider=endpoint.provider,
        latency_ms=probe.latency_ms,
        checked_at=now,
        models=before.models if probe.models is None else probe.models,
        loaded=probe.loaded,
        warmth=probe.warmth,
        failures=before.failures + 1 if wrong else 0,
        successes=before.successes + 1 if well else 0,
    )
    status, reason = _status(before, seen, probe)
    return replace(seen, status=status, reason=reason)


def _status(before: EndpointHealth, seen: EndpointHealth, probe: Probe) -> tuple[Status, str]:
    match probe.finding:
        case Finding.LOADING | Finding.REFUSED:
            return Status.UNHEALTHY, probe.reason
        case Finding.UNCLEAR:
            return Status.UNKNOWN, probe.reason
        case Finding.FAILED:
            trusted = before.status in (Status.HEALTHY, Status.DEGRADED)
            if trusted and seen.failures < FAILURES_TO_CONDEMN:
                return Status.DEGRADED, f"{probe.reason}; one failure so far"
            return Status.UNHEALTHY, probe.reason
        case Finding.OK:
            # Loading ends by itself; only an endpoint that failed must succeed twice.
            if before.status is Status.UNHEALTHY and before.failures:
                return Status.DEGRADED, "just recovered"
            if probe.warmth is Warmth.FULL:
                return Status.DEGRADED, probe.reason or "the provider has no machine free"
            if probe.latency_ms is not None and probe.latency_ms >= SLOW_MS:
                return Status.DEGRADED, f"slow: a probe took {probe.latency_ms} ms"
            return Status.HEALTHY, ""


def must_store(stored: EndpointHealth | None, judged: EndpointHealth) -> bool:
    """Tell whether health must be stored: the router or the next judgement would differ, or the stored one is old.

    The number of failures matters only up to the one that condemns; latency and successes alone change nothing.
    """
    if stored is None or stored.checked_at is None or judged.checked_at is None:
        return True
    return _told(stored) != _told(judged) or judged.checked_at - stored.checked_at >= STORE_AGAIN_AFTER


def _told(health: EndpointHealth) -> EndpointHealth:
    failures = min(health.failures, FAILURES_TO_CONDEMN)
    return replace(health, checked_at=None, latency_ms=None, successes=0, failures=failures, pauses=())


def unseen(endpoint: Endpoint) -> EndpointHealth:
    """Build the health of an endpoint that was never probed."""
    return EndpointHealth(
        endpoint=endpoint.name, provider=endpoint.provider, status=Status.UNKNOWN, reason="not checked yet"
    )


def believe(endpoint: Endpoint, health: EndpointHealth | None, *, now: datetime) -> EndpointHealth:
    """Return the stored health if it is recent; an old or missing one becomes unknown, which excludes no endpoint."""
    if health is None:
        return unseen(endpoint)
    if health.checked_at is None or now - health.checked_at <= STALE_AFTER:
        return health
    minutes = int((now - health.checked_at).total_seconds() // 60)
    return replace(health, status=Status.UNKNOWN, warmth=Warmth.UNKNOWN, reason=f"last checked {minutes} minutes ago")
