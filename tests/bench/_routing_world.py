"""A world of endpoints on a virtual clock: requests arrive, wait, are served, fail, and somebody routes them.

What an endpoint really is stays in here. Whoever routes sees what a gateway sees: when it sent a request, when the
first token came, when the answer ended or failed; and, where its published rule asks for them, free probes.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

ATTEMPTS_MAX = 3
TIMEOUT_S = 60.0
HEDGE_SHARE = 0.05


@dataclass(frozen=True, kw_only=True)
class Truth:
    """What an endpoint really is."""

    name: str
    parallel: int = 8
    base_ms: float = 200.0
    prefill_ms: float = 0.2
    """Per prompt token."""
    decode_ms: float = 15.0
    """Per output token."""
    slow: tuple[float, float, float] | None = None
    """From, to, and how many times slower."""
    errs: float = 0.0
    """The chance that a request fails."""
    errs_after_ms: float = 250.0
    cold_s: float = 0.0
    sleeps_after_s: float | None = None
    usd_per_mtok_in: float = 0.0
    usd_per_mtok_out: float = 0.0
    usd_per_hour: float = 0.0
    """While it is awake, for one that sleeps; what never sleeps costs the same whatever is routed."""
    joins_s: float = 0.0
    """Nobody knows of it before."""
    asleep_at_first: bool = False


@dataclass(frozen=True)
class Asked:
    """One request; all that chance decides about it is drawn before anybody routes it."""

    number: int
    at_s: float
    prompt_tokens: int
    output_tokens: int
    luck: tuple[float, ...]
    """Per attempt: the service's jitter, as a factor."""
    fate: tuple[float, ...]
    """Per attempt: fails when below the endpoint's chance."""
    counted: bool = True
    """Not the warm-up."""


@dataclass(frozen=True)
class Plan:
    """What a router says about one request."""

    order: Callable[[frozenset[int]], int | None]
    """The next endpoint to try, given those that were."""
    hedge_after_s: float | None = None
    wake: tuple[int, ...] = ()
    note: object = None
    """The router's own."""


class Sent(Protocol):
    """A router's view of one attempt."""

    def first_token(self) -> None: ...
    def succeeded(self, output_tokens: int) -> None: ...
    def failed(self, *, timed_out: bool) -> None: ...
    def lost(self) -> None: ...


class Router(Protocol):
    """What is compared. Endpoints are numbers here; `World.known` says which exist for now."""

    def plan(self, asked: Asked) -> Plan: ...
    def sent(self, endpoint: int, asked: Asked, plan: Plan) -> Sent: ...
    def woke(self, endpoint: int) -> None: ...


@dataclass(eq=False)
class _Try:
    """One attempt at one endpoint, in the endpoint's hands."""

    endpoint: _Endpoint
    asked: Asked
    number: int
    view: Sent
    call: _Call
    state: str = "waiting"
    waited_cold: bool = False


@dataclass(eq=False)
class _Call:
    """One request on its way through its attempts."""

    asked: Asked
    plan: Plan
    tried: set[int] = field(default_factory=set)
    running: list[_Try] = field(default_factory=list)
    attempts: int = 0
    answered_at_s: float | None = None
    over: bool = False
    first: int | None = None
    hit_cold: bool = False
    needless_wait: bool = False


@dataclass(eq=False)
class _Endpoint:
    number: int
    truth: Truth
    waiting: deque[_Try] = field(default_factory=deque)
    serving: set[_Try] = field(default_factory=set)
    awake: bool = True
    starting: bool = False
    used_s: float = 0.0
    awake_since_s: float = 0.0
    awake_total_s: float = 0.0
    tokens_usd: float = 0.0
    recent_ms: deque[float] = field(default_factory=lambda: deque(maxlen=16))

    @property
    def in_flight(self) -> int:
        return len(self.waiting) + len(self.serving)


@dataclass
class Outcome:
    """What the callers saw and what it cost."""

    waits_ms: list[float] = field(default_factory=list)
    asked: int = 0
    answered: int = 0
    bad: int = 0
    bad_of: int = 0
    cost_usd: float = 0.0
    extra_attempts: int = 0


class World:
    """The simulation of one seed under one router."""

    def __init__(
        self, truths: Sequence[Truth], requests: Sequence[Asked], bad: Callable[[Asked, World, _Call], bool | None]
    ) -> None:
        self.endpoints = [_Endpoint(i, t, awake=not t.asleep_at_first) for i, t in enumerate(truths)]
        self.now_s = 0.0
        self.outcome = Outcome()
        self._requests = requests
        self._bad = bad
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._router: Router | None = None
        self._hedges = 1.0

    def run(self, router: Router) -> Outcome:
        self._router = router
        for asked in self._requests:
            self._at(asked.at_s, lambda asked=asked: self._arrive(asked))  # type: ignore[misc]
        while self._events:
            self.now_s, _, act = heapq.heappop(self._events)
            act()
        self._close_books()
        return self.outcome

    # What routers may ask.

    def known(self) -> list[int]:
        return [e.number for e in self.endpoints if e.truth.joins_s <= self.now_s]

    def probe(self, number: int) -> tuple[int, float | None]:
        """A server's own count of requests in flight, and its median latency of late: what Prequal's probes tell."""
        endpoint = self.endpoints[number]
        recent = sorted(endpoint.recent_ms)
        return endpoint.in_flight, recent[len(recent) // 2] if recent else None

    def is_loaded(self, number: int) -> bool:
        """Whether it is awake: what a provider's free list of workers or models tells the minute's check."""
        endpoint = self.endpoints[number]
        self._doze(endpoint)
        return endpoint.awake

    # A call and its attempts.

    def _arrive(self, asked: Asked) -> None:
        assert self._router is not None
        plan = self._router.plan(asked)
        call = _Call(asked, plan)
        self._hedges = min(self._hedges + HEDGE_SHARE, 10.0)
        for number in plan.wake:
            self._wake(self.endpoints[number])
        self._next(call)
        if plan.hedge_after_s is not None:
            self._at(self.now_s + plan.hedge_after_s, lambda: self._hedge(call))

    def _hedge(self, call: _Call) -> None:
        waiting = len(call.running) == 1 and call.attempts == 1
        if call.over or call.answered_at_s is not None or not waiting or self._hedges < 1.0:
            return
        self._hedges -= 1.0
        self.outcome.extra_attempts += 1
        self._next(call)

    def _next(self, call: _Call) -> None:
        assert self._router is not None
        number = call.plan.order(frozenset(call.tried)) if call.attempts < ATTEMPTS_MAX else None
        if number is None:
            if not call.running:
                self._finish(call)
            return
        endpoint = self.endpoints[number]
        self._doze(endpoint)
        if call.first is None:
            call.first = number
            full = endpoint.in_flight >= endpoint.truth.parallel
            others = [self.endpoints[i] for i in self.known()]
            call.needless_wait = full and any(e.awake and e.in_flight < e.truth.parallel for e in others)
        call.tried.add(number)
        attempt = _Try(endpoint, call.asked, call.attempts, self._router.sent(number, call.asked, call.plan), call)
        call.attempts += 1
        call.running.append(attempt)
        if not endpoint.awake:
            call.hit_cold = True
            self._wake(endpoint)
        endpoint.waiting.append(attempt)
        self._at(self.now_s + TIMEOUT_S, lambda: self._time_out(attempt))
        self._serve(endpoint)

    def _answer(self, attempt: _Try) -> None:
        call = attempt.call
        attempt.view.first_token()
        if call.answered_at_s is None:
            call.answered_at_s = self.now_s
            for rival in [t for t in call.running if t is not attempt]:
                self._drop(rival)
                rival.view.lost()

    def _time_out(self, attempt: _Try) -> None:
        if attempt.state in ("waiting", "prefilling"):
            self._drop(attempt)
            attempt.view.failed(timed_out=True)
            self._after_failure(attempt.call)

    def _after_failure(self, call: _Call) -> None:
        if call.answered_at_s is None and not call.over and not call.running:
            self._next(call)

    def _finish(self, call: _Call) -> None:
        call.over = True
        if not call.asked.counted:
            return
        self.outcome.asked += 1
        verdict = self._bad(call.asked, self, call)
        if verdict is not None:
            self.outcome.bad_of += 1
            self.outcome.bad += verdict
        if call.answered_at_s is None:
            self.outcome.waits_ms.append((self.now_s - call.asked.at_s) * 1000.0)
            return
        self.outcome.answered += 1
        self.outcome.waits_ms.append((call.answered_at_s - call.asked.at_s) * 1000.0)

    # An endpoint at work.

    def _serve(self, endpoint: _Endpoint) -> None:
        while endpoint.awake and endpoint.waiting and len(endpoint.serving) < endpoint.truth.parallel:
            attempt = endpoint.waiting.popleft()
            attempt.state = "prefilling"
            endpoint.serving.add(attempt)
            truth, asked = endpoint.truth, attempt.asked
            if asked.fate[attempt.number] < truth.errs:
                self._at(self.now_s + truth.errs_after_ms / 1000.0, lambda a=attempt: self._err(a))  # type: ignore[misc]
                continue
            factor = asked.luck[attempt.number] * self._slowness(truth)
            prefill_s = (truth.base_ms + asked.prompt_tokens * truth.prefill_ms) * factor / 1000.0
            self._at(self.now_s + prefill_s, lambda a=attempt, f=factor: self._first_token(a, f))  # type: ignore[misc]

    def _first_token(self, attempt: _Try, factor: float) -> None:
        if attempt.state != "prefilling":
            return
        attempt.state = "decoding"
        endpoint, asked = attempt.endpoint, attempt.asked
        decode_s = asked.output_tokens * endpoint.truth.decode_ms * factor / 1000.0
        started_s = self.now_s
        self._answer(attempt)
        self._at(started_s + decode_s, lambda: self._end(attempt))

    def _end(self, attempt: _Try) -> None:
        if attempt.state != "decoding":
            return
        endpoint = attempt.endpoint
        self._drop(attempt)
        endpoint.used_s = self.now_s
        truth, asked = endpoint.truth, attempt.asked
        endpoint.tokens_usd += asked.prompt_tokens * truth.usd_per_mtok_in / 1e6
        endpoint.tokens_usd += asked.output_tokens * truth.usd_per_mtok_out / 1e6
        if attempt.call.answered_at_s is not None:
            endpoint.recent_ms.append((attempt.call.answered_at_s - asked.at_s) * 1000.0)
        attempt.view.succeeded(asked.output_tokens)
        self._finish(attempt.call)

    def _err(self, attempt: _Try) -> None:
        if attempt.state != "prefilling":
            return
        self._drop(attempt)
        attempt.endpoint.used_s = self.now_s
        attempt.view.failed(timed_out=False)
        self._after_failure(attempt.call)

    def _drop(self, attempt: _Try) -> None:
        """Take it off its endpoint, which has a place free."""
        endpoint = attempt.endpoint
        if attempt.state == "waiting":
            endpoint.waiting.remove(attempt)
        endpoint.serving.discard(attempt)
        attempt.state = "over"
        attempt.call.running.remove(attempt)
        endpoint.used_s = self.now_s
        self._serve(endpoint)

    # Sleep.

    def _doze(self, endpoint: _Endpoint) -> None:
        limit = endpoint.truth.sleeps_after_s
        if limit is None or not endpoint.awake or endpoint.in_flight:
            return
        if self.now_s - endpoint.used_s >= limit:
            endpoint.awake = False
            endpoint.awake_total_s += endpoint.used_s + limit - endpoint.awake_since_s

    def _wake(self, endpoint: _Endpoint) -> None:
        self._doze(endpoint)
        if endpoint.awake or endpoint.starting:
            return
        endpoint.starting = True
        endpoint.awake_since_s = self.now_s
        self._at(self.now_s + endpoint.truth.cold_s, lambda: self._awake(endpoint))

    def _awake(self, endpoint: _Endpoint) -> None:
        assert self._router is not None
        endpoint.starting, endpoint.awake, endpoint.used_s = False, True, self.now_s
        self._router.woke(endpoint.number)
        self._serve(endpoint)

    def _close_books(self) -> None:
        for endpoint in self.endpoints:
            truth = endpoint.truth
            if truth.sleeps_after_s is not None and endpoint.awake:
                endpoint.awake_total_s += endpoint.used_s + truth.sleeps_after_s - endpoint.awake_since_s
            self.outcome.cost_usd += endpoint.tokens_usd
            if truth.sleeps_after_s is not None:
                self.outcome.cost_usd += endpoint.awake_total_s / 3600.0 * truth.usd_per_hour

    def _slowness(self, truth: Truth) -> float:
        if truth.slow is None:
            return 1.0
        since_s, until_s, factor = truth.slow
        return factor if since_s <= self.now_s < until_s else 1.0

    def _at(self, when_s: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when_s, next(self._order), act))


def draw(
    number: int, at_s: float, rng: random.Random, *, prompt: int = 400, output: int = 60, counted: bool = True
) -> Asked:
    """One request: prompts and answers of about those many tokens, with the long tails they have in the wild."""
    return Asked(
        number=number,
        at_s=at_s,
        prompt_tokens=max(round(prompt * rng.lognormvariate(0.0, 0.8)), 8),
        output_tokens=max(round(output * rng.lognormvariate(-0.18, 0.6)), 2),
        luck=tuple(rng.lognormvariate(0.0, 0.25) for _ in range(ATTEMPTS_MAX)),
        fate=tuple(rng.random() for _ in range(ATTEMPTS_MAX)),
        counted=counted,
    )
