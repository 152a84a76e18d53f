"""Uptime sessions of this process: which requests keep which machines awake."""

from __future__ import annotations

from collections import defaultdict

from goblin.billing.policy.prices import bills_time
from goblin.core.endpoints import Endpoint
from goblin.core.ports import Clock
from goblin.gateway.drains import DRAIN_S_MAX
from goblin.gateway.policy.uptime import EndpointMachines, UptimeSession

ENDING_S = 10.0
"""Time from cancelling a request until its machine has certainly noticed."""


class UptimeSessions:
    """The machines of all endpoints that bill uptime, as this process has seen them."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._fleets: dict[str, EndpointMachines] = defaultdict(EndpointMachines)

    def begin_session(self, endpoint: Endpoint) -> UptimeSession | None:
        """Begin the uptime session of a request; None if the endpoint does not bill uptime."""
        if not bills_time(endpoint):
            return None
        ending_s = ENDING_S if endpoint.cancel_stops_bill else ENDING_S + DRAIN_S_MAX
        return self._fleets[endpoint.name].begin_session(endpoint, self.now_s(), ending_s=ending_s)

    def now_s(self) -> float:
        return self._clock.monotonic()
