"""One simulation run per seed: the real services over a world in memory in which every kind of failure happens.

Clouds, messages, stores, machines and people are simulated. The real services and policies make every decision and
every write, in several function instances at once whose clocks differ. First failures happen, then none.
"""

from __future__ import annotations

import heapq
import inspect
import itertools
import random
from collections import deque
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Any

from goblin.billing import budgets as budget_service
from goblin.billing import settlement
from goblin.core import dead_letters, events
from goblin.core.events import BudgetExceeded, CheckpointSaved, JobRequested
from goblin.jobs import checkpoints, lifecycle
from goblin.jobs.domain.job import ENDED, LEASED, Job, JobKind, JobOwner, JobState
from goblin.jobs.lifecycle import JobDeps
from goblin.jobs.reconcile import reconcile
from tests.fakes.jobs import START, FakeClock, Faults, MemoryMarket, MemoryObjects
from tests.simulation import truths
from tests.simulation.clouds import Clouds
from tests.simulation.figures import Figures
from tests.simulation.hosts import Host
from tests.simulation.market import Bills
from tests.simulation.market_weather import RICH, WEATHERS, Weather, budgets
from tests.simulation.network import Network
from tests.simulation.poison import Poison
from tests.simulation.post import Message, Post
from tests.simulation.promises import Promises
from tests.simulation.stores import Jobs, SimulatedLedger, announcer, function
from tests.simulation.ticks import TICK_S, Ticks
from tests.simulation.truths import Truth

CALM_DAYS_MAX = 40
Act = Callable[[], Awaitable[None] | None]


class Life:
    """One run of the whole system and its world. `run` is deterministic in the seed."""

    def __init__(self, seed: int, weather: Weather | None = None) -> None:
        self.rng = rng = random.Random(seed)
        self.weather = weather or WEATHERS[seed % len(WEATHERS)]
        self.clock = FakeClock(at=START + timedelta(hours=rng.uniform(0, 24 * 6)))
        self.seed, self._lines = seed, deque[str](maxlen=200)
        self._heap: list[tuple[float, int, Act]] = []
        self._order = itertools.count()
        self.calm = False
        self.ticks = Ticks(self)
        self.hurry, self.asked_to_stop = self.ticks.hurry, self.ticks.asked_to_stop
        self.network = Network(rng, idle=self._pass_time)
        self.figures = Figures(lives=1)
        self.promises = Promises(self)
        self.truths: dict[str, Truth] = {}
        self.cancelled: set[str] = set()
        self.hosts: dict[str, Host] = {}
        self.tokens: dict[str, list[str]] = {}
        self.jobs = Jobs(self.promises.wrote)
        self.objects = MemoryObjects(Faults())
        self.poison = Poison(self, seed)
        self.post = Post(rng, self.later, self._handle)
        self.ledger = SimulatedLedger(declared=budgets(rng, self.weather))
        self.ledger.booked = self.promises.booked  # type: ignore[method-assign]
        many = 100 if self.weather.promise else rng.choice([2, 5])
        self.limits = {JobKind.BATCH.value: many, JobKind.TRAINING.value: many, JobKind.INFERENCE.value: 1}
        self.clouds = Clouds(self)
        self.providers = self.clouds.providers
        self.bills = [Bills(cloud, self.clock, tells=rng.random() < 0.7) for cloud in self.providers.values()]
        history = MemoryMarket()
        self._functions = [function(self, history, rng.uniform(-5, 5)) for _ in range(3)]
        self._began = self.t

    # The system.

    def function(self) -> JobDeps:
        """Some instance of a function."""
        return self.rng.choice(self._functions)

    def job(self, job_id: str) -> Job:
        return self.jobs.stored[job_id].job

    @property
    def exists(self) -> set[str]:
        """The labels of all instances that there are."""
        return {rented.label for provider in self.providers.values() for rented in provider.listed}

    # The clock.

    @property
    def now(self) -> datetime:
        return self.clock.now()

    @property
    def t(self) -> float:
        return self.clock.monotonic()

    def later(self, seconds: float, act: Act) -> None:
        """Let something happen."""
        heapq.heappush(self._heap, (self.t + max(0.0, seconds), next(self._order), act))

    def _pass_time(self) -> None:
        if self.rng.random() < 0.05:
            self.clock.advance(self.rng.uniform(0, 3))

    def log(self, line: str) -> None:
        self._lines.append(f"{self.now:%d %H:%M:%S} {line}")

    @property
    def story(self) -> str:
        return "\n".join(self._lines)

    async def run(self) -> None:
        """A storm, then calm until nothing is left to do, then the bills."""
        self._begin()
        end = self.t + self.weather.days * 86400
        while self.t < end:
            await self._step()
        self._calm_down()
        end = self.t + CALM_DAYS_MAX * 86400
        while self.t < end and not self._is_quiet():
            await self._step()
        await self._give_up()
        await self._idle()
        self.figures.world_s = self.t - self._began
        self.figures.crashes = self.network.crashed
        self.promises.ended()
        self.poison.ended()
        await self._settle_all()

    async def _step(self) -> None:
        """What comes next; sometimes several things at once."""
        acts = [self._pop()]
        if not self.calm and self.rng.random() < self.weather.overlap:
            while self._heap and len(acts) < 3 and self._heap[0][0] <= self.t + 20:
                acts.append(self._pop())
        if not self.calm and self.rng.random() < self.weather.crash:
            self.network.crash_in = self.rng.randint(0, 12)
        died = self.network.crashed
        await self.network.run(*(self._as_call(act) for act in acts))
        self.network.crash_in = None
        if self.network.crashed > died:
            self.figures.crashed_at = self.now
            self.log("a function died")

    def _pop(self) -> Act:
        at, _, act = heapq.heappop(self._heap)
        if at > self.t:
            self.clock.advance(at - self.t)
        return act

    @staticmethod
    def _as_call(act: Act) -> Callable[[], Awaitable[None]]:
        async def call() -> None:
            found = act()
            if inspect.isawaitable(found):
                await found

        return call

    # What happens.

    def _begin(self) -> None:
        weather = self.weather
        self.ticks.plan(self.rng.uniform(0, TICK_S))
        self.clouds.begin()
        self.later(self.weather.settle_s, self._settle)
        if weather.poison_s:
            self.poison.plan()
        for number in range(weather.jobs):
            self.later(self.rng.uniform(0, weather.days * 86400 * 0.8), lambda n=number: self._ask_for(f"j{n}"))

    def old_tokens(self, job_id: str, mine: str) -> list[str]:
        """Of the attempts before: what a machine may have found lying about."""
        known = self.tokens.get(job_id, [])
        return known[: known.index(mine)]

    async def _ask_for(self, name: str) -> None:
        truth = truths.job(self.rng, name, self.now, self, promise=self.weather.promise)
        self.truths[name] = truth
        if self.weather.poison_s:
            self.poison.spoil(truth)
        await self._submit(truth)
        if not self.weather.promise and self.rng.random() < 0.08:
            self.later(self.rng.expovariate(1 / 7200), lambda: self.cancel(name))

    async def _submit(self, truth: Truth) -> None:
        """By a message; or by hand, and again until somebody answers."""
        if self.rng.random() < 0.5 or truth.spec.kind == JobKind.INFERENCE:
            await self.post.publish("job-requested", truth.spec)
            return

        async def by_hand() -> None:
            deps = self.function()
            try:
                await lifecycle.submit(truth.spec, JobOwner(), deps)
                await reconcile(deps, only=truth.spec.job_id)
            finally:
                if truth.spec.job_id not in self.jobs.stored:
                    self.later(20, by_hand)

        self.later(0, by_hand)

    async def cancel(self, name: str) -> None:
        """Somebody has enough of a job."""
        self.cancelled.add(name)
        await lifecycle.cancel(name, self.function(), by="somebody", tenant=None)

    async def _handle(self, message: Message) -> None:
        """As the functions of the topics do."""
        self.figures.messages += 1
        self.poison.handled(message)
        deps = self.function()
        event = events.Event(event_id=message.message_id, data=message.data)
        graves: Any = deps.bus
        await dead_letters.handle(message.topic, event, lambda _: self._follow(message, deps), lambda: graves)

    async def _follow(self, message: Message, deps: JobDeps) -> None:
        match message.topic:
            case "job-requested":
                spec = events.decode(JobRequested, message.data)
                stored = self.jobs.stored.get(spec.job_id)
                if stored and stored.job.lease and (host := self.hosts.get(stored.job.lease.label)):
                    await host.beat()
                job = await lifecycle.request(spec, deps)
                await reconcile(deps, only=job.job_id)
            case "checkpoint-saved":
                await checkpoints.note(events.decode(CheckpointSaved, message.data), deps)
            case "budget-exceeded":
                events.decode(BudgetExceeded, message.data)
                event = events.Event(event_id=message.message_id, data=message.data)
                await budget_service.follow(
                    event, budget_service.BudgetDeps(ledger=deps.money.ledger, clock=deps.clock)
                )
            case other:
                raise AssertionError(f"nobody hears {other}")

    async def _settle(self) -> None:
        self.later(self.weather.settle_s, self._settle)
        await self._settle_once()

    async def _settle_once(self) -> None:
        deps = self.function()
        money = deps.money
        ledger: Any = money.ledger
        await settlement.settle(settlement.SettlementDeps(
            ledger=ledger, allocation_store=ledger, bills=self.bills, announce=announcer(deps.bus), prices={},
            clock=deps.clock,
        ))  # fmt: skip

    async def thaw(self) -> None:
        """Somebody lifts every freeze that there is."""
        deps = self.function()
        for account in sorted({freeze.account for freeze in self.ledger.frozen.values()}):
            wish = f"w{self.rng.randrange(10**9)}"
            await budget_service.thaw(
                account,
                actor="somebody",
                wish_id=wish,
                deps=budget_service.BudgetDeps(ledger=deps.money.ledger, clock=deps.clock),
            )

    # The end.

    def _calm_down(self) -> None:
        """Nothing fails any more, everything can be had, and there is money."""
        self.calm = True
        self.log("calm")
        self.hurry()
        self.network.down.clear()
        self.network.answers_lost = 0.0
        self.post.rough = False
        self.post.replay()
        self.ledger.declared = RICH
        self.clouds.calm_down()
        self.poison.calm_down()
        self.later(0, self.thaw)
        self.later(7200, self.thaw)
        self.later(1800, self.post.replay)

    def may_wait(self, job: Job) -> bool:
        """Whether nothing that is offered may be taken, and the job says so."""
        bounded = job.spec.max_price_per_hour is not None or job.spec.budget_usd is not None
        return job.state is JobState.QUEUED and bounded and job.no_placement is not None

    def _is_quiet(self) -> bool:
        """Whether nothing is left to do but waiting for ever."""
        if self.post.under_way or len(self.truths) < self.weather.jobs:
            return False
        if self.truths.keys() - self.jobs.stored.keys():
            return False
        return all(not one.job.open or self.may_wait(one.job) for one in self.jobs.stored.values())

    async def _give_up(self) -> None:
        """Those who asked for too cheap a job take it back; then nothing is left."""
        self.promises.waiting()
        for name, stored in list(self.jobs.stored.items()):
            if stored.job.state not in ENDED:
                await self.network.run(lambda name=name: self.cancel(name))
        for _ in range(2000):
            if not any(one.job.open for one in self.jobs.stored.values()):
                break
            await self._step()

    async def _idle(self) -> None:
        """With no jobs nothing is rented and nothing asked that costs."""
        asked, rented = sum(cloud.asked_offers for cloud in self.providers.values()), self.figures.rented
        for _ in range(5):
            await self.ticks.reconcile(self.function())
            self.clock.advance(TICK_S)
        assert self.figures.rented == rented, "rented for nobody"
        now_asked = sum(cloud.asked_offers for cloud in self.providers.values())
        assert now_asked == asked, "asked for offers that nobody needs"
        assert not any(one.job.state in LEASED for one in self.jobs.stored.values())

    async def _settle_all(self) -> None:
        """Hours pass until every bill is final."""
        self._heap.clear()
        for _ in range(4 * 24 // 6):
            self.clock.advance(6 * 3600)
            await self._settle_once()
        self.promises.billed()
