"""Uptime billing: machines that bill while they are awake. Each second of a machine is charged to one request.

asleep ▁▁▁[start][work]▔▔▔▔ idle tail ▔▔▔▔▁▁▁    the first request pays for all of it
               [──── work ────]▔▔▔▔ idle tail ▔▁▁    the second pays for what it adds

The charges of all requests add up to the time that the machines were awake for them, tails included, and never less.
Two processes do not know each other's requests, so both pay for time that they share; the settlement against the
provider's bill corrects that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from goblin.core.endpoints import Endpoint

S_PER_HOUR = 3600


@dataclass(slots=True)
class AwakeMachine:
    """A machine that is awake or starting."""

    paid_until_s: float
    """Its uptime up to this time is charged to requests, tails included."""
    in_flight: int = 0
    """Requests in flight on it."""


@dataclass(slots=True)
class UptimeSession:
    """One request on one machine, until its idle tail. Times are seconds of a monotonic clock."""

    endpoint: Endpoint
    machine: AwakeMachine
    began_s: float
    ending_s: float
    """How long its machine may still be busy with it after its time limit."""
    charged_s: float | None = None
    """The uptime charged to it; set when it has ended."""

    def worst_s(self) -> float:
        """Compute the most uptime that it can be charged, if it is cancelled at its time limit."""
        busy_s = self.endpoint.request_s_max + self.ending_s
        return self.began_s + busy_s + self._tail_s - self.machine.paid_until_s

    def left_s(self, now_s: float) -> float:
        """Return how much longer it may take."""
        return self.began_s + self.endpoint.request_s_max - now_s

    def end(self, now_s: float, *, woke: bool) -> None:
        """Charge the uptime that it added. A second call does nothing.

        Args:
            now_s: When its machine was done with it.
            woke: Whether the machine served it, so that an idle tail follows. A refusal has no tail; it is charged the
                time until the refusal, unless other requests kept the machine awake.
        """
        if self.charged_s is not None:
            return
        last_s = now_s + self._tail_s if woke else now_s
        if not woke and self.machine.in_flight > 1:
            last_s = self.machine.paid_until_s
        self.charged_s = max(0.0, last_s - self.machine.paid_until_s)
        self.machine.paid_until_s += self.charged_s
        self.machine.in_flight -= 1

    def cost_usd_micros(self, seconds: float) -> int:
        """Compute the cost of an uptime, rounded up; less than a millisecond costs nothing."""
        hourly = self.endpoint.price_usd_micros_per_hour or 0
        return math.ceil(int(seconds * 1000) * hourly / (1000 * S_PER_HOUR))

    @property
    def _tail_s(self) -> int:
        return self.endpoint.sleeps_after_s or 0


@dataclass(slots=True)
class EndpointMachines:
    """The machines of one endpoint."""

    machines: list[AwakeMachine] = field(default_factory=list)

    def begin_session(self, endpoint: Endpoint, now_s: float, *, ending_s: float) -> UptimeSession:
        """Begin a session on an awake machine with room; if there is none, on one more machine."""
        self.machines = [one for one in self.machines if one.in_flight or one.paid_until_s > now_s]
        room = [one for one in self.machines if one.in_flight < endpoint.parallel]
        machine = max(room, key=lambda one: one.paid_until_s, default=None)
        if machine is None:
            machine = AwakeMachine(paid_until_s=now_s)
            self.machines.append(machine)
        machine.in_flight += 1
        return UptimeSession(endpoint, machine, now_s, ending_s)
