"""What every probe shares: a deadline, a latency measurement, and errors that become findings."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace

from goblin.core.errors import Fault, GoblinError, ProviderUnavailable
from goblin.gateway.domain.endpoint_health import Finding, Probe

log = logging.getLogger(__name__)

PROBE_TIMEOUT_S = 5.0
MODELS_MAX = 2000
"""Models of one endpoint that are kept. OpenRouter lists some hundreds."""
NAME_MAX = 256
"""Longest name of a model, as in requests."""

_FINDINGS = {
    Fault.LOADING: Finding.LOADING,
    Fault.AUTH: Finding.REFUSED,
    Fault.MONEY: Finding.REFUSED,
    Fault.MISSING: Finding.UNCLEAR,
    Fault.UNSUPPORTED: Finding.UNCLEAR,
    # A full or throttled endpoint is alive: real requests tell the router more than a probe can.
    Fault.RATE: Finding.OK,
    Fault.CAPACITY: Finding.OK,
}


async def look(probe: Callable[[], Awaitable[Probe]]) -> Probe:
    """Run a probe within `PROBE_TIMEOUT_S`; every error becomes a finding, so this never raises."""
    started = time.monotonic()
    try:
        async with asyncio.timeout(PROBE_TIMEOUT_S):
            found = await probe()
    except TimeoutError:
        return Probe(finding=Finding.FAILED, reason=f"no answer in {PROBE_TIMEOUT_S:.0f} s")
    except ProviderUnavailable as error:
        return Probe(finding=_FINDINGS.get(error.fault, Finding.FAILED), reason=error.message)
    except GoblinError as error:
        return Probe(finding=Finding.UNCLEAR, reason=error.message)
    except Exception as error:
        log.exception("A probe raised an unexpected error.")
        return Probe(finding=Finding.UNCLEAR, reason=f"the probe raised {type(error).__name__}")
    if found.models is not None:
        # They are written into one document, and are names that callers could write into a request.
        named = tuple(name for name in found.models if 0 < len(name) <= NAME_MAX)[:MODELS_MAX]
        found = replace(found, models=named)
    if found.latency_ms is None:
        return replace(found, latency_ms=elapsed_ms(started))
    return found


def elapsed_ms(started: float) -> int:
    """Count the milliseconds since a reading of `time.monotonic`, at least one."""
    return max(round((time.monotonic() - started) * 1000), 1)
