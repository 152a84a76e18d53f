"""The rules that ours is compared with, as published. Each may retry elsewhere as ours may; none sees the truth.

round_robin         each in turn.
least_connections   the fewest requests in flight; ties by chance.
peak_ewma_p2c       Finagle, linkerd, tower: of two drawn, the lower latency * (in flight + 1). A slower sample counts
                    at once, a quicker one and silence decay over 10 s; an unseen endpoint counts as 1 s; a failure as
                    at least 1 s, linkerd's answer to failures that look fast.
litellm             `latency-based-routing`: the lowest mean of the last ten times to the first token, the unseen as 0;
                    ties by chance; a timeout as 1000 s; 5 s of cooldown above one half of failures in a minute.
prequal             NSDI'24: probes tell requests in flight and latency; hot is above the 2^-0.25 quantile in flight;
                    the quickest cold one, else the least loaded. So few that all are probed; the failing are avoided.
"""

from __future__ import annotations

import math
import random
from collections import deque
from dataclasses import dataclass, field

from tests.bench._routing_world import Asked, Plan, Sent, World


@dataclass
class _Seen:
    """What a rule keeps of one endpoint."""

    in_flight: int = 0
    ewma_ms: float | None = None
    ewma_at_s: float = 0.0
    last_ms: deque[float] = field(default_factory=lambda: deque(maxlen=10))
    minute: int = -1
    fails: int = 0
    ends: int = 0
    cool_until_s: float = 0.0
    failing: float = 0.0
    """Decayed share of failures."""


class Rule:
    """Bookkeeping that every rule shares; the rule itself is `pick`."""

    def __init__(self, world: World, seed: int) -> None:
        self.world = world
        self.rng = random.Random(seed)
        self.seen: dict[int, _Seen] = {}

    def of(self, number: int) -> _Seen:
        return self.seen.setdefault(number, _Seen())

    def pick(self, known: list[int]) -> int:
        raise NotImplementedError

    def plan(self, asked: Asked) -> Plan:
        def following(tried: frozenset[int]) -> int | None:
            known = [n for n in self.world.known() if n not in tried]
            return self.pick(known) if known else None

        return Plan(order=following)

    def sent(self, endpoint: int, asked: Asked, plan: Plan) -> Sent:
        self.of(endpoint).in_flight += 1
        return _View(self, endpoint)

    def woke(self, endpoint: int) -> None:
        """None of them asks whether anybody sleeps."""

    def learn(self, number: int, ms: float) -> None:
        """A first token took so long."""

    def learn_failure(self, number: int, ms: float, *, timed_out: bool) -> None:
        """It failed after so long."""


@dataclass
class _View:
    rule: Rule
    number: int
    started_s: float = field(init=False)

    def __post_init__(self) -> None:
        self.started_s = self.rule.world.now_s

    def _ms(self) -> float:
        return (self.rule.world.now_s - self.started_s) * 1000.0

    def first_token(self) -> None:
        self.rule.learn(self.number, self._ms())

    def succeeded(self, output_tokens: int) -> None:
        self.rule.of(self.number).in_flight -= 1
        self.rule.of(self.number).failing *= 0.9
        self._count(failed=False)

    def failed(self, *, timed_out: bool) -> None:
        seen = self.rule.of(self.number)
        seen.in_flight -= 1
        seen.failing = seen.failing * 0.9 + 0.1
        self._count(failed=True)
        self.rule.learn_failure(self.number, self._ms(), timed_out=timed_out)

    def lost(self) -> None:
        self.rule.of(self.number).in_flight -= 1

    def _count(self, *, failed: bool) -> None:
        seen, minute = self.rule.of(self.number), int(self.rule.world.now_s // 60)
        if seen.minute != minute:
            seen.minute, seen.fails, seen.ends = minute, 0, 0
        seen.ends += 1
        seen.fails += failed


class RoundRobin(Rule):
    turn = 0

    def pick(self, known: list[int]) -> int:
        self.turn += 1
        return known[self.turn % len(known)]


class LeastConnections(Rule):
    def pick(self, known: list[int]) -> int:
        return min(known, key=lambda n: (self.of(n).in_flight, self.rng.random()))


class PeakEwma(Rule):
    TAU_S = 10.0
    UNSEEN_MS = 1000.0

    def pick(self, known: list[int]) -> int:
        drawn = self.rng.sample(known, min(2, len(known)))
        return min(drawn, key=self._cost)

    def _cost(self, number: int) -> float:
        return self._ewma(number) * (self.of(number).in_flight + 1)

    def _ewma(self, number: int) -> float:
        seen = self.of(number)
        if seen.ewma_ms is None:
            return self.UNSEEN_MS
        return seen.ewma_ms * math.exp((seen.ewma_at_s - self.world.now_s) / self.TAU_S)

    def learn(self, number: int, ms: float) -> None:
        seen = self.of(number)
        now_s = self.world.now_s
        if seen.ewma_ms is None or ms > self._ewma(number):
            seen.ewma_ms = ms
        else:
            keep = math.exp((seen.ewma_at_s - now_s) / self.TAU_S)
            seen.ewma_ms = seen.ewma_ms * keep + ms * (1.0 - keep)
        seen.ewma_at_s = now_s

    def learn_failure(self, number: int, ms: float, *, timed_out: bool) -> None:
        self.learn(number, max(ms, self._ewma(number), 1000.0))


class LiteLLM(Rule):
    COOLDOWN_S = 5.0

    def pick(self, known: list[int]) -> int:
        now_s = self.world.now_s
        ready = [n for n in known if self.of(n).cool_until_s <= now_s] or known
        means = {n: self._mean(n) for n in ready}
        best = min(means.values())
        return self.rng.choice([n for n in ready if means[n] <= best])

    def _mean(self, number: int) -> float:
        last = self.of(number).last_ms
        return sum(last) / len(last) if last else 0.0

    def learn(self, number: int, ms: float) -> None:
        self.of(number).last_ms.append(ms)

    def learn_failure(self, number: int, ms: float, *, timed_out: bool) -> None:
        seen = self.of(number)
        if timed_out:
            seen.last_ms.append(1_000_000.0)
        if seen.ends >= 5 and seen.fails / seen.ends > 0.5:
            seen.cool_until_s = self.world.now_s + self.COOLDOWN_S


class Prequal(Rule):
    HOT = 2.0**-0.25
    FAILING = 0.1

    def pick(self, known: list[int]) -> int:
        sane = [n for n in known if self.of(n).failing < self.FAILING] or known
        probes = {n: self.world.probe(n) for n in sane}
        counts = sorted(count for count, _ in probes.values())
        bar = counts[min(int(self.HOT * len(counts)), len(counts) - 1)]
        seen = sorted(ms for _, ms in probes.values() if ms is not None)
        if not seen:
            return self.rng.choice(sane)
        middle = seen[len(seen) // 2]  # Who has no latency to tell counts as one of the others.
        cold = [n for n in sane if probes[n][0] < bar or (counts[0] == bar and probes[n][0] <= bar)]
        if cold:
            return min(cold, key=lambda n: (middle if probes[n][1] is None else probes[n][1], self.rng.random()))
        return min(sane, key=lambda n: (probes[n][0], self.rng.random()))


RULES: dict[str, type[Rule]] = {
    "round_robin": RoundRobin,
    "least_connections": LeastConnections,
    "peak_ewma_p2c": PeakEwma,
    "litellm": LiteLLM,
    "prequal": Prequal,
}
