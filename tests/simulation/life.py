"""One seed, one life: the real services over a world in memory where everything that can go wrong does.

Clouds, messages, stores, machines and people are simulated; every decision and every write is made by the services and
policies themselves, in several function instances at once whose clocks differ. First a storm, then calm.
"""

from __future__ import annotations

import heapq
import inspect
import itertools
import random
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import msgspec

from goblin import events
from goblin.domain.accounts import Limit, Period
from goblin.domain.compute import job_of_label
from goblin.domain.hints import Hint
from goblin.domain.jobs import ENDED, LEASED, Job, Kind, State
from goblin.domain.money import USD_MICROS, Action
from goblin.events import BudgetExceeded, CheckpointSaved, JobRequested
from goblin.job_ports import Stored
from goblin.policy.budget import crossed
from goblin.policy.spending import Crossing, Step
from goblin.services import budget, checkpoints, hints, jobs, rents, settling
from goblin.services.jobs import JobDeps
from goblin.services.reconcile import reconcile
from tests.fakes.jobs import (
    BUCKET,
    START,
    FakeClock,
    Faults,
    MemoryAttemptKeys,
    MemoryHints,
    MemoryJobs,
    MemoryMarket,
    MemoryObjects,
)
from tests.fakes.ledger import MemoryLedger
from tests.simulation import truths
from tests.simulation.figures import Figures
from tests.simulation.hosts import BEAT_S, Host, Manner
from tests.simulation.market import Bills, Machine, Provider, Rented
from tests.simulation.network import Network, Reached
from tests.simulation.post import Message, Post
from tests.simulation.promises import Promises
from tests.simulation.truths import Truth

TICK_S = 60.0
ORDERS_LOST = 0.06
"""Share of the orders whose answer is lost on any day."""
QUIET_TICKS = 1
LULL_S_MAX = 480.0
"""Shorter than the gap after which nobody knows what the market did meanwhile."""
RENEWED_S = 720.0
"""Before the end of what is paid a renewal is asked for."""
PORTS = ("jobs", "ledger", "objects", "market", "keys", "bus")
CALM_DAYS_MAX = 40
RICH = {
    name: (Limit(period=Period.MONTH, limit_usd_micros=10_000 * USD_MICROS),) for name in ("total", "runpod", "vastai")
}
Act = Callable[[], Awaitable[None] | None]


class SimulatedClock:
    """A function instance's own: a little fast or slow."""

    def __init__(self, clock: FakeClock, ahead_s: float) -> None:
        self._clock, self._ahead = clock, timedelta(seconds=ahead_s)

    def now(self) -> datetime:
        return self._clock.now() + self._ahead

    def monotonic(self) -> float:
        return self._clock.monotonic()


class Jobs(MemoryJobs):
    """Tells of every write, and keeps no history."""

    def __init__(self, wrote: Callable[[Job | None, Job], None]) -> None:
        super().__init__()
        self._wrote = wrote
        self._writes = 0

    def _put(self, job: Job) -> Stored:
        before = self.stored.get(job.job_id)
        self._writes += 1
        if self._writes % 16 == 0:  # A store gives back what it can write; to try it each time takes too long.
            job = msgspec.json.decode(msgspec.json.encode(job), type=Job)
        stored = self.stored[job.job_id] = Stored(job=job, version=str(self._writes))
        self._wrote(before.job if before else None, job)
        return stored


class SimulatedLedger(MemoryLedger):
    """Tells of every write."""

    booked: Callable[[Any, Any], None] = staticmethod(lambda accounts, entries: None)

    def _write(self, step: Step, lease_id: str | None) -> None:
        super()._write(step, lease_id)
        if step.writes and step.accounts:
            self.booked(self._accounts([account.name for account in step.accounts]), step.entries)

    def put_aside(self, label: str) -> int:
        """For an attempt's instance, over all its days."""
        found = 0
        for part in itertools.count(1):
            name = f"rent:{label}:{part}"
            lease, settled = self.lent.get(name), self.written.get(f"{name}:settled")
            if lease is not None:
                found += max(lease.granted_usd_micros, lease.settled_usd_micros)
            elif settled is not None:
                found += settled.amount_usd_micros
            else:
                return found
        raise AssertionError


@dataclass(frozen=True)
class Weather:
    """How rough a life is."""

    promise: bool
    """The world keeps what deadlines are promised on: on demand can be had, and nothing of ours fails."""
    days: float
    jobs: int
    crash: float
    """Chance that a call dies at one of its writes."""
    overlap: float
    """Chance that several calls run at once."""
    trouble_s: float
    """Mean time between troubles."""
    move_s: float = 1800.0
    """Mean time between two moves of a price."""
    deadlines: float = 0.2
    """Share of jobs with one."""
    hours: float = 1.8
    """Work of a job in the middle."""


STORM = Weather(promise=False, days=0.7, jobs=14, crash=0.02, overlap=0.08, trouble_s=1500)
FAIR = Weather(promise=True, days=0.5, jobs=8, crash=0.0, overlap=0.0, trouble_s=1e9)
LONG = Weather(
    promise=False, days=8, jobs=60, crash=0.01, overlap=0.03, trouble_s=15_000, move_s=4 * 3600, hours=14, deadlines=0.0
)  # fmt: skip

WEATHERS = (STORM, STORM, LONG, FAIR)


class Life:
    """A whole system and its world; `run` is deterministic in the seed."""

    def __init__(self, seed: int, weather: Weather | None = None) -> None:
        self.dice = dice = random.Random(seed)
        self.weather = weather or WEATHERS[seed % len(WEATHERS)]
        self.clock = FakeClock(at=START + timedelta(hours=dice.uniform(0, 24 * 6)))
        self.seed, self._lines = seed, deque[str](maxlen=200)
        self._heap: list[tuple[float, int, Act]] = []
        self._order = itertools.count()
        self.calm = False
        self._next_tick, self._ticks, self._quiet = 0.0, 0, 0
        self.network = Network(dice, idle=self._pass_time)
        self.figures = Figures(lives=1)
        self.promises = Promises(self)
        self.truths: dict[str, Truth] = {}
        self.cancelled: set[str] = set()
        self.hosts: dict[str, Host] = {}
        self._tokens: dict[str, list[str]] = {}
        self.jobs = Jobs(self.promises.wrote)
        self.objects = MemoryObjects(Faults())
        self.post = Post(dice, self.later, self._handle)
        self.ledger = SimulatedLedger(declared=self._budgets())
        self.ledger.booked = self.promises.booked  # type: ignore[method-assign]
        many = 100 if self.weather.promise else dice.choice([2, 5])
        self.limits = {Kind.BATCH.value: many, Kind.TRAINING.value: many, Kind.INFERENCE.value: 1}
        self.providers = {name: self._cloud(name) for name in ("runpod", "vastai")}
        if not self.weather.promise and dice.random() < 0.2:
            self.providers["local"] = self._own()
        self.bills = [Bills(cloud, self.clock, tells=dice.random() < 0.7) for cloud in self.providers.values()]
        self._hints: Any = Reached(MemoryHints(), self.network, "hints")
        self._functions = [self._function(dice.uniform(-5, 5)) for _ in range(3)]
        self._began = self._t

    # The system.

    def _function(self, ahead_s: float) -> JobDeps:
        net, secrets = self.network, itertools.count(1)
        instance = self.dice.randrange(10**6)
        ledger = Reached(
            self.ledger, net, "ledger",
            reads=("balances", "entries", "rented", "actions", "freezes", "accounts", "leases", "limited"),
        )  # fmt: skip
        bus: Any = Reached(self.post, net, "bus")
        clock = SimulatedClock(self.clock, ahead_s)

        async def announce(crossing: Crossing) -> None:
            await bus.publish("budget-exceeded", crossed(crossing))

        everything: dict[str, Any] = {
            "jobs": Reached(self.jobs, net, "jobs", reads=("get", "list_open", "list_recent")),
            "objects": Reached(self.objects, net, "objects", reads=("stat", "list_from", "grant_get", "grant_put")),
            "bus": bus,
            "keys": Reached(MemoryAttemptKeys(), net, "keys"),
            "market": Reached(self._watched, net, "market", reads=("load",)),
            "money": rents.Deps(ledger=ledger, lender=ledger, announce=announce),  # type: ignore[arg-type]
        }
        return JobDeps(
            **everything, compute=self.providers, clock=clock, bucket=BUCKET, url="http://goblin",
            limits=self.limits, new_secret=lambda: f"secret-{instance:06d}-{next(secrets):06d}",
        )  # fmt: skip

    _watched = property(lambda self: self.__dict__.setdefault("_market", MemoryMarket()))

    def function(self) -> JobDeps:
        """Some instance of a function."""
        return self.dice.choice(self._functions)

    def job(self, job_id: str) -> Job:
        return self.jobs.stored[job_id].job

    def _budgets(self) -> Mapping[str, Sequence[Limit]]:
        dice = self.dice
        if self.weather.promise or dice.random() < 0.4:
            return RICH
        month = Limit(
            period=Period.MONTH, limit_usd_micros=dice.choice([10, 50, 200]) * USD_MICROS,
            action=dice.choice([Action.ALERT, Action.FREEZE]),
        )  # fmt: skip
        day = Limit(period=Period.DAY, limit_usd_micros=dice.choice([2, 10, 30]) * USD_MICROS, action=Action.STOP_JOBS)
        some = {"total": (month,), "vastai": (day,)}
        return {**RICH, **{name: limits for name, limits in some.items() if dice.random() < 0.7}}

    def _cloud(self, name: str) -> Provider:
        dice, machines = self.dice, list[Machine]()
        for gpu, memory, price in (("RTX_4090", 24_000, 400_000), ("A100_PCIE", 80_000, 900_000)):
            for number in range(1 if name == "runpod" else 3):
                on_demand = int(price * dice.uniform(0.9, 1.2) * (1.3 if name == "runpod" else 1.0))
                spot = name == "vastai"
                machines.append(Machine(
                    machine_id=f"{gpu}-{number}" if spot else None, gpu=gpu, gpu_memory_mib=memory,
                    on_demand=on_demand, floor=int(on_demand * dice.uniform(0.3, 0.7)) if spot else None,
                    boot_s=dice.uniform(20, 120), mib_per_s=dice.choice([50.0, 200.0]),
                    reliability=dice.choice([None, 0.9, 0.99]) if spot else 0.999,
                    storage=dice.choice([0, 100_000, 200_000]), download=dice.choice([0, 0, 3_000]) if spot else 0,
                    upload=dice.choice([0, 0, 3_000]) if spot else 0,
                ))  # fmt: skip
        return self._opened(name, machines, frozenset({Kind.BATCH.value, Kind.TRAINING.value}))

    def _opened(self, name: str, machines: list[Machine], kinds: frozenset[str]) -> Provider:
        cloud = Provider(
            name, machines, network=self.network, clock=self.clock, dice=self.dice, later=self.later, kinds=kinds
        )  # fmt: skip
        cloud.on_rent, cloud.on_release, cloud.on_gone = self._rented, self.promises.released, self._gone
        cloud.on_lost, cloud.on_taken, cloud.on_stopped = self._order_lost, self._taken, self._stopped
        return cloud

    def _own(self) -> Provider:
        """A machine of ours, which costs nothing."""
        machine = Machine(
            machine_id="own", gpu="", gpu_memory_mib=0, on_demand=0, floor=None, boot_s=1.0, mib_per_s=500.0,
            reliability=1.0, storage=0, download=0, upload=0,
        )  # fmt: skip
        return self._opened("local", [machine], frozenset({Kind.BATCH.value}))

    @property
    def exists(self) -> set[str]:
        """The labels of all instances that there are."""
        return {rented.label for provider in self.providers.values() for rented in provider.listed}

    # The clock.

    @property
    def now(self) -> datetime:
        return self.clock.now()

    @property
    def _t(self) -> float:
        return self.clock.monotonic()

    def later(self, seconds: float, act: Act) -> None:
        """Let something happen."""
        heapq.heappush(self._heap, (self._t + max(0.0, seconds), next(self._order), act))

    def _pass_time(self) -> None:
        if self.dice.random() < 0.05:
            self.clock.advance(self.dice.uniform(0, 3))

    def log(self, line: str) -> None:
        self._lines.append(f"{self.now:%d %H:%M:%S} {line}")

    @property
    def story(self) -> str:
        return "\n".join(self._lines)

    async def run(self) -> None:
        """A storm, then calm until nothing is left to do, then the bills."""
        self._begin()
        end = self._t + self.weather.days * 86400
        while self._t < end:
            await self._step()
        self._calm_down()
        end = self._t + CALM_DAYS_MAX * 86400
        while self._t < end and not self._is_quiet():
            await self._step()
        await self._give_up()
        await self._idle()
        self.figures.world_s = self._t - self._began
        self.figures.crashes = self.network.crashed
        self.promises.ended()
        await self._settle_all()

    async def _step(self) -> None:
        """What comes next; sometimes several things at once."""
        acts = [self._pop()]
        if not self.calm and self.dice.random() < self.weather.overlap:
            while self._heap and len(acts) < 3 and self._heap[0][0] <= self._t + 20:
                acts.append(self._pop())
        if not self.calm and self.dice.random() < self.weather.crash:
            self.network.crash_in = self.dice.randint(0, 12)
        died = self.network.crashed
        await self.network.run(*(self._as_call(act) for act in acts))
        self.network.crash_in = None
        if self.network.crashed > died:
            self.figures.crashed_at = self.now
            self.log("a function died")

    def _pop(self) -> Act:
        at, _, act = heapq.heappop(self._heap)
        if at > self._t:
            self.clock.advance(at - self._t)
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
        self._plan_tick(self.dice.uniform(0, 60))
        for cloud in self.providers.values():
            cloud.lost_orders = 0.0 if weather.promise else ORDERS_LOST
        self.later(3600, self._settle)
        for number in range(weather.jobs):
            self.later(self.dice.uniform(0, weather.days * 86400 * 0.8), lambda n=number: self._ask_for(f"j{n}"))
        for provider in self.providers.values():
            for machine in provider.machines:
                self._plan_moves(provider, machine)
        if not weather.promise:
            self.later(self.dice.expovariate(1 / weather.trouble_s), self._trouble)

    def _plan_moves(self, provider: Provider, machine: Machine) -> None:
        def move() -> None:
            if self.calm:
                return
            self.hurry()
            if machine.floor is not None and self.dice.random() < 0.85:
                provider.move(machine)
            elif not machine.taken:
                provider.take(machine)
                out_s = self.dice.uniform(60, 300) if machine.floor is None else self.dice.expovariate(1 / 7200)
                self.later(out_s, lambda: self._free(machine))
            self._plan_moves(provider, machine)

        mean_s = self.weather.move_s if machine.floor is not None else 4 * 3600
        self.later(self.dice.expovariate(1 / mean_s), move)

    def _free(self, machine: Machine) -> None:
        machine.taken = False
        self.hurry()

    def _taken(self, rented: Rented) -> None:
        """An instance is outbid or taken back; its provider may tell, once, twice, late or never."""
        self.hurry()
        self.log(f"{rented.label} is {rented.detail}")
        host = rented.host
        if host is not None and not host.exited and self.job(host.job_id).attempt == host.attempt:
            self.figures.stopped(host.job_id, self.now)
        kind = "outbid" if rented.detail == "outbid" else "instance_stopped"
        hint = Hint(provider=rented.provider, event_id=f"{rented.instance_id}-{kind}", kind=kind)
        for _ in range(self.dice.choice([0, 1, 1, 2])):
            late = self.dice.random() < 0.1
            self.later(self.dice.uniform(300, 1200) if late else 1 + self.dice.expovariate(1), lambda: self._hint(hint))

    async def _hint(self, hint: Hint) -> None:
        async def sleep(seconds: float) -> None:
            """It passes without us."""

        for host in list(self.hosts.values()):
            await host.freshen()
        await hints.follow(hint, self.function(), self._hints, sleep=sleep)

    def _stopped(self, rented: Rented) -> None:
        """Its process is no more."""
        self.hurry()
        if rented.host is not None:
            rented.host.stop()

    def _rented(self, rented: Rented) -> None:
        self.figures.rented += 1
        self.hurry()
        self.promises.rented(rented)
        manners = [Manner.HONEST] if self.calm or self.weather.promise else list(Manner)
        weights = [60] + [5] * (len(manners) - 1)
        manner = self.dice.choices(manners, weights[: len(manners)])[0]
        host = rented.host = self.hosts[rented.label] = Host(self, rented, manner)
        self._tokens.setdefault(host.job_id, []).append(host.token)
        self.log(f"{rented.label} begins at {rented.provider}: {manner}")
        host.boot()

    def _order_lost(self, label: str) -> None:
        """Sometimes its owner has enough just then."""
        if not self.calm and self.dice.random() < 0.2:
            self.later(self.dice.uniform(0, 40), lambda: self._cancel(job_of_label(label)))

    def _gone(self, rented: Rented) -> None:
        self.hurry()
        self.promises.gone(rented)
        host = self.hosts.pop(rented.label, None)
        if host is not None:
            host.stop()
            if rented.detail:
                self.figures.lost_s.append(host.lost_s)
        self.log(f"{rented.label} is gone")

    def old_tokens(self, job_id: str, mine: str) -> list[str]:
        return [token for token in self._tokens.get(job_id, []) if token != mine]

    async def _ask_for(self, name: str) -> None:
        truth = truths.job(self.dice, name, self.now, self, promise=self.weather.promise)
        self.truths[name] = truth
        await self._submit(truth)
        if not self.weather.promise and self.dice.random() < 0.08:
            self.later(self.dice.expovariate(1 / 7200), lambda: self._cancel(name))

    async def _submit(self, truth: Truth) -> None:
        """By a message; or by hand, and again until somebody answers."""
        if self.dice.random() < 0.5 or truth.spec.kind == Kind.INFERENCE:
            await self.post.publish("job-requested", truth.spec)
            return

        async def by_hand() -> None:
            deps = self.function()
            try:
                await jobs.submit(truth.spec, deps)
                await reconcile(deps, only=truth.spec.job_id)
            finally:
                if truth.spec.job_id not in self.jobs.stored:
                    self.later(20, by_hand)

        self.later(0, by_hand)

    async def _cancel(self, name: str) -> None:
        self.cancelled.add(name)
        await jobs.cancel(name, self.function(), by="somebody")

    async def _handle(self, message: Message) -> None:
        """As the functions of the topics do."""
        self.figures.messages += 1
        deps = self.function()
        match message.topic:
            case "job-requested":
                spec = events.decode(JobRequested, message.data)
                stored = self.jobs.stored.get(spec.job_id)
                if stored and stored.job.lease and (host := self.hosts.get(stored.job.lease.label)):
                    await host.beat()
                job = await jobs.request(spec, deps)
                await reconcile(deps, only=job.job_id)
            case "checkpoint-saved":
                await checkpoints.note(events.decode(CheckpointSaved, message.data), deps)
            case "budget-exceeded":
                events.decode(BudgetExceeded, message.data)
                event = events.Event(event_id=message.message_id, data=message.data)
                await budget.follow(event, budget.Deps(ledger=deps.money.ledger, clock=deps.clock))
            case other:
                raise AssertionError(f"nobody hears {other}")

    async def _tick(self, number: int) -> None:
        if number != self._ticks:
            return  # It was called for earlier.
        missed = not self.calm and not self.weather.promise and self.dice.random() < 0.01
        self._quiet += 1
        self._plan_tick(self._lull_s() + self.dice.uniform(-2, 2) + (180 if missed else 0))
        begin, deps, doubled = self.now, self.function(), not self.calm and self.dice.random() < 0.02
        if doubled and self.weather.overlap:
            self.later(0, lambda: self._reconcile(self.function()))
        known = [name for name, cloud in self.providers.items() if not cloud.unknown and not cloud.deaf]
        await self._reconcile(deps)
        for name in known:
            cloud = self.providers[name]
            if not cloud.unknown and not cloud.deaf:
                self.promises.whole[name].append((begin, self.now))
        self.promises.ticked()

    def _plan_tick(self, seconds: float) -> None:
        self._ticks += 1
        self._next_tick = self._t + seconds
        self.later(seconds, lambda number=self._ticks: self._tick(number))
        self.later(seconds - BEAT_S, lambda number=self._ticks: self._beats(number))

    def _lull_s(self) -> float:
        """How long ticks would find nothing new: they are not simulated."""
        open_jobs = [one.job for one in self.jobs.stored.values() if one.job.open]
        rough = self.network.down or any(cloud.unknown or cloud.deaf for cloud in self.providers.values())
        if self._quiet < QUIET_TICKS or rough or self.weather.promise:
            return TICK_S
        if any(not self._is_steady(job) for job in open_jobs):
            return TICK_S
        # Money is prolonged in time, and taken over by the next day.
        waits = [job.not_before for job in open_jobs if job.not_before is not None and job.not_before > self.now]
        dues = [(until - self.now).total_seconds() + self.dice.uniform(0, TICK_S) for until in waits]
        dues += [(rent.until - self.now).total_seconds() - RENEWED_S for job in open_jobs for rent in job.rents]
        midnight_s = (timedelta(days=1) - (self.now - self.now.replace(hour=0, minute=0, second=0))).total_seconds()
        return max(TICK_S, min(LULL_S_MAX, midnight_s + 10, *dues))

    def _is_steady(self, job: Job) -> bool:
        """Whether only events can change it."""
        if job.spec.deadline is not None or job.stop is not None:
            return False
        return job.state in (State.QUEUED, State.RUNNING)

    def asked_to_stop(self, label: str) -> None:
        """Its machine hears of it with its next sign of life."""
        if (host := self.hosts.get(label)) is not None:
            self.later(self.dice.uniform(0, BEAT_S), host.beat)

    def hurry(self) -> None:
        """Something has happened that the next tick, at most a minute away, will see."""
        self._quiet = 0
        if self._next_tick - self._t > TICK_S:
            self._plan_tick(self.dice.uniform(0, TICK_S))

    async def _reconcile(self, deps: JobDeps) -> None:
        for host in list(self.hosts.values()):
            await host.freshen()
        report = await reconcile(deps)
        for line in report.errors:
            self.log(f"reconcile: {line}")

    def _beats(self, number: int) -> None:
        """Each machine's last sign of life before the next tick: those in between change nothing that anybody sees."""
        if number != self._ticks:
            return
        for host in self.hosts.values():
            self.later(self.dice.uniform(0, BEAT_S - 0.1), host.beat)

    async def _settle(self) -> None:
        self.later(3600, self._settle)
        await self._settle_once()

    async def _settle_once(self) -> None:
        deps = self.function()
        money = deps.money
        await settling.settle(settling.Deps(
            ledger=money.ledger, lender=money.lender, bills=self.bills, announce=money.announce, prices={},
            clock=deps.clock,
        ))  # fmt: skip

    def _trouble(self) -> None:
        """Something goes wrong for a while."""
        if self.calm:
            return
        self.hurry()
        dice = self.dice
        self.later(dice.expovariate(1 / self.weather.trouble_s), self._trouble)
        cloud = dice.choice(list(self.providers.values()))
        minutes = dice.expovariate(1 / 240)
        kind = dice.choice(["down", "unknown", "deaf", "lost orders", "lost answers", "vanish", "freeze"])
        self.log(f"trouble: {kind} at {cloud.name}, {minutes:.0f} s")
        match kind:
            case "down":
                port = dice.choice(PORTS)
                self.network.down.add(port)
                self.later(minutes, lambda: self._is_back(port))
            case "unknown":
                cloud.unknown = dice.choice(["410 Gone", "429 Too Many Requests"])
                self.figures.silent(cloud.name, self.now)
                self.later(minutes, lambda: self._answers(cloud))
            case "deaf":
                cloud.deaf = True
                self.figures.silent(cloud.name, self.now)
                self.later(minutes, lambda: self._answers(cloud))
            case "lost orders":
                cloud.lost_orders = 0.6
                self.later(20 * minutes, lambda: setattr(cloud, "lost_orders", ORDERS_LOST))
            case "lost answers":
                self.network.answers_lost = 0.05
                self.later(minutes, lambda: setattr(self.network, "answers_lost", 0.0))
            case "vanish":
                if cloud.listed:
                    rented = dice.choice(cloud.listed)
                    rented.detail = "gone without a word"
                    self._taken(rented)
                    cloud.remove(rented)
            case "freeze":
                self.later(dice.expovariate(1 / 3600), self._thaw)

    def _is_back(self, port: str) -> None:
        self.network.down.discard(port)
        for name in self.providers:
            self.figures.silent(name, self.now)

    def _answers(self, cloud: Provider) -> None:
        self.hurry()
        cloud.unknown, cloud.deaf = "", False
        self.figures.silent(cloud.name, self.now)

    async def _thaw(self) -> None:
        deps = self.function()
        for account in sorted({freeze.account for freeze in self.ledger.frozen.values()}):
            wish = f"w{self.dice.randrange(10**9)}"
            await budget.thaw(
                account, actor="somebody", wish_id=wish, deps=budget.Deps(ledger=deps.money.ledger, clock=deps.clock)
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
        for cloud in self.providers.values():
            cloud.lost_orders = 0.0
            self._answers(cloud)
            for machine in cloud.machines:
                machine.taken = False
        self.later(0, self._thaw)
        self.later(7200, self._thaw)
        self.later(1800, self.post.replay)

    def may_wait(self, job: Job) -> bool:
        """Whether nothing that is offered may be taken, and the job says so."""
        bounded = job.spec.max_price_per_hour is not None or job.spec.budget_usd is not None
        return job.state is State.QUEUED and bounded and job.no_placement is not None

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
                await self.network.run(lambda name=name: self._cancel(name))
        for _ in range(2000):
            if not any(one.job.open for one in self.jobs.stored.values()):
                break
            await self._step()

    async def _idle(self) -> None:
        """With no jobs nothing is rented and nothing asked that costs."""
        asked, rented = sum(cloud.asked_offers for cloud in self.providers.values()), self.figures.rented
        for _ in range(5):
            await self._reconcile(self.function())
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
