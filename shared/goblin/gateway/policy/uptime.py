"""Machines that bill while they are awake, as one gateway sees them: each second of each is paid once.

asleep ▁▁▁[start][work]▔▔▔▔ idle tail ▔▔▔▔▁▁▁    the first request pays all of it
               [──── work ────]▔▔▔▔ idle tail ▔▁▁    the second what it adds to that

The sum of what requests are charged is the time that the machines were awake for them, tails included, and never less.
Two gateways know nothing of each other's requests and both pay for what they share; the provider's bill corrects it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from goblin.core.endpoints import Endpoint

S_PER_HOUR = 3600


@dataclass(slots=True)
class AwakeMachine:
    """One that is awake, or about to be."""

    paid_until_s: float
    """All of its time awake before this is charged to somebody, tails included."""
    in_flight: int = 0
    """Requests that it serves now."""


@dataclass(slots=True)
class UptimeSession:
    """One request on one machine. Times are seconds of a clock that never turns back."""

    endpoint: Endpoint
    machine: AwakeMachine
    began_s: float
    ending_s: float
    """How long after its time is over its machine may still be busy with it."""
    charged_s: float | None = None
    """Set when it has ended."""

    def worst_s(self) -> float:
        """The most it can come to, if it is cut off when its time is over."""
        busy_s = self.endpoint.request_s_max + self.ending_s
        return self.began_s + busy_s + self._tail_s - self.machine.paid_until_s

    def left_s(self, now_s: float) -> float:
        """How much longer it may take."""
        return self.began_s + self.endpoint.request_s_max - now_s

    def end(self, now_s: float, *, woke: bool) -> None:
        """Charge what it added to the time awake; a second time does nothing.

        Args:
            now_s: When its machine was done with it.
            woke: It was taken, so a tail follows. A refusal has none, and costs the time until it came, unless the
                machine was awake for others then.
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
        """Rounded up, from whole milliseconds: what took none costs nothing."""
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
        """Ride on a machine that is awake and has room; without one, on one more."""
        self.machines = [one for one in self.machines if one.in_flight or one.paid_until_s > now_s]
        room = [one for one in self.machines if one.in_flight < endpoint.parallel]
        machine = max(room, key=lambda one: one.paid_until_s, default=None)
        if machine is None:
            machine = AwakeMachine(paid_until_s=now_s)
            self.machines.append(machine)
        machine.in_flight += 1
        return UptimeSession(endpoint, machine, now_s, ending_s)
