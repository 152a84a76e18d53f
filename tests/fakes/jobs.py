"""The ports of `jobs` in memory. They pass the same contract tests as the adapters, and any write can crash.

Each write passes two points, just before and just after it happens. `Faults` can end the handler at any of them.
"""

from __future__ import annotations

import base64
import itertools
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import google_crc32c
import msgspec

from goblin.billing.budget_client import BudgetClient
from goblin.billing.domain.accounts import Limit, Period
from goblin.billing.policy.allocation import ThresholdEvent
from goblin.core.errors import Conflict, NotFound, ProviderUnavailable, StoreUnavailable, Transient
from goblin.core.events import JobStatusChanged
from goblin.core.ports import ObjectFacts, SignedRequest
from goblin.jobs import reservations
from goblin.jobs.domain.instances import (
    AttemptLease,
    Instance,
    Inventory,
    KnownInventory,
    RentalOrder,
    UnknownInventory,
)
from goblin.jobs.domain.job import LEASED, AskerKey, Job, JobKind
from goblin.jobs.domain.market import InstanceRequirements, Listing, Offer
from goblin.jobs.lifecycle import JobDeps
from goblin.jobs.policy.spot.market_history import MarketHistory
from goblin.jobs.ports import StoredJob, UnreadableJob, WebhookEvent
from tests.fakes.ledger import MemoryLedger

BUCKET = "bucket"
START = datetime(2026, 11, 25, 12, tzinfo=UTC)


class Crash(BaseException):
    """A simulated crash of the process at this point. No service may catch it, as none catches a `kill -9`."""


@dataclass
class Faults:
    """Counter of the points that writes pass; it ends the handler at one of them."""

    crash_at: int | None = None
    passed: int = 0
    names: list[str] = field(default_factory=list)

    def point(self, name: str) -> None:
        self.passed += 1
        self.names.append(name)
        if self.crash_at is not None and self.passed == self.crash_at:
            self.crash_at = None
            raise Crash(name)


@dataclass
class FakeClock:
    at: datetime = START

    def now(self) -> datetime:
        return self.at

    def monotonic(self) -> float:
        return (self.at - START).total_seconds()

    def advance(self, seconds: float) -> None:
        self.at += timedelta(seconds=seconds)


class MemoryJobs:
    """The port `JobStore` in memory. It keeps every version that was ever written."""

    def __init__(self, faults: Faults | None = None) -> None:
        self._faults = faults or Faults()
        self._versions = itertools.count(1)
        self.stored: dict[str, StoredJob] = {}
        self.outputs: dict[str, str] = {}
        self.history: dict[str, list[Job]] = {}
        self.down = False
        self.unreadable: dict[str, AttemptLease | None] = {}
        """Jobs whose documents cannot be read, except perhaps for their lease."""
        self.before_replace: Callable[[], None] = lambda: None

    def _check(self) -> None:
        if self.down:
            raise StoreUnavailable("the store is down")

    def _put(self, job: Job) -> StoredJob:
        # What a real store gives back is what it can write, not the object that was handed to it.
        job = msgspec.json.decode(msgspec.json.encode(job), type=Job)
        stored = self.stored[job.job_id] = StoredJob(job=job, version=str(next(self._versions)))
        self.history.setdefault(job.job_id, []).append(job)
        return stored

    def touch(self, job_id: str) -> None:
        """Somebody else writes it."""
        self._put(self.stored[job_id].job)

    async def create(self, job: Job) -> StoredJob | None:
        self._check()
        if job.job_id in self.stored:
            return None
        self._faults.point("create job")
        stored = self._put(job)
        self._faults.point("created job")
        return stored

    async def get(self, job_id: str) -> StoredJob | None:
        self._check()
        if job_id in self.unreadable:
            raise UnreadableJob(job_id, "it is not ours", lease=self.unreadable[job_id])
        return self.stored.get(job_id)

    async def replace(self, job: Job, version: str) -> StoredJob | None:
        self._check()
        self.before_replace()
        if job.job_id not in self.stored or self.stored[job.job_id].version != version:
            return None
        self._faults.point(f"write job {job.state}")
        stored = self._put(job)
        self._faults.point(f"wrote job {job.state}")
        return stored

    async def place(self, job: Job, version: str, *, limit: int) -> StoredJob | None:
        others = (one.job for one in self.stored.values() if one.job.job_id != job.job_id)
        if sum(other.state in LEASED and other.spec.kind == job.spec.kind for other in others) >= limit:
            return None
        return await self.replace(job, version)

    async def hold_output(self, uri: str, job_id: str, *, instead_of: str = "") -> str:
        self._check()
        if self.outputs.get(uri, instead_of) == instead_of:
            self._faults.point("hold output")
            self.outputs[uri] = job_id
            self._faults.point("held output")
        return self.outputs[uri]

    async def release_output(self, uri: str, job_id: str) -> None:
        self._check()
        if self.outputs.get(uri) == job_id:
            self._faults.point("release output")
            del self.outputs[uri]
            self._faults.point("released output")

    async def list_open(self, limit: int) -> Sequence[StoredJob]:
        self._check()
        found = [stored for stored in self._readable() if stored.job.open]
        return sorted(found, key=lambda stored: stored.job.requested_at)[:limit]

    async def list_recent(self, limit: int, *, tenant: str | None) -> Sequence[Job]:
        self._check()
        own = (stored.job for stored in self._readable() if tenant in (None, stored.job.owner.tenant))
        return sorted(own, key=lambda job: job.requested_at, reverse=True)[:limit]

    def _readable(self) -> list[StoredJob]:
        return [stored for job_id, stored in self.stored.items() if job_id not in self.unreadable]


class MemoryMarket:
    """The port `MarketHistoryStore` in memory."""

    def __init__(self) -> None:
        self.history = MarketHistory()
        self._version = 0

    async def load(self) -> tuple[MarketHistory, str | None]:
        return self.history, str(self._version) if self._version else None

    async def save(self, history: MarketHistory, version: str | None) -> bool:
        if version != (str(self._version) if self._version else None):
            return False
        self.history = msgspec.json.decode(msgspec.json.encode(history), type=MarketHistory)
        self._version += 1
        return True


@dataclass(frozen=True)
class _Object:
    facts: ObjectFacts
    data: bytes


def crc32c(data: bytes) -> str:
    return base64.b64encode(google_crc32c.Checksum(data).digest()).decode()


class MemoryObjects:
    """The port `ObjectStore` in memory. `put` uploads as the holder of a signed request would."""

    def __init__(self, faults: Faults | None = None, *, chunk: int = 300) -> None:
        self._faults = faults or Faults()
        self.chunk = chunk
        self._generations = itertools.count(1000)
        self.objects: dict[str, _Object] = {}

    def write(self, uri: str, data: bytes, metadata: Mapping[str, str] | None = None) -> ObjectFacts:
        """Write, whatever lies there: what our services never do."""
        facts = ObjectFacts(
            uri=uri, generation=next(self._generations), size=len(data), crc32c=crc32c(data),
            metadata=dict(metadata or {}),
        )  # fmt: skip
        self.objects[uri] = _Object(facts, data)
        return facts

    def put(self, grant: SignedRequest, data: bytes) -> int:
        """The status that Cloud Storage answers a PUT with."""
        assert grant.method == "PUT"
        if len(data) != int(grant.headers["x-goog-content-length-range"].split(",")[0]):
            return 400
        if grant.headers["x-goog-hash"] != f"crc32c={crc32c(data)}":
            return 400
        if grant.url in self.objects:
            return 412
        self.write(grant.url, data)
        return 200

    async def stat(self, uri: str) -> ObjectFacts | None:
        found = self.objects.get(uri)
        return found.facts if found else None

    async def list_from(self, prefix: str, start: str) -> Sequence[str]:
        return sorted(uri for uri in self.objects if uri.startswith(prefix) and uri >= start)

    async def read(self, uri: str, *, generation: int, start: int = 0) -> AsyncGenerator[bytes, None]:
        found = self.objects.get(uri)
        if found is None or found.facts.generation != generation:
            raise NotFound(f"there is no {uri} of generation {generation}")
        for at in range(start, len(found.data), self.chunk):
            yield found.data[at : at + self.chunk]

    async def create(self, uri: str, data: bytes, *, content_type: str) -> ObjectFacts | None:
        if uri in self.objects:
            return None
        self._faults.point(f"create {uri}")
        facts = self.write(uri, data)
        self._faults.point(f"created {uri}")
        return facts

    async def compose(
        self, sources: Sequence[ObjectFacts], uri: str, *, metadata: Mapping[str, str]
    ) -> ObjectFacts | None:
        assert 1 <= len(sources) <= 32
        if uri in self.objects:
            return None
        parts = [self.objects.get(source.uri) for source in sources]
        for source, part in zip(sources, parts, strict=True):
            if part is None or part.facts.generation != source.generation:
                raise Conflict(f"a part of {uri} is gone or was replaced")
        self._faults.point(f"compose {uri}")
        facts = self.write(uri, b"".join(part.data for part in parts if part), metadata)
        self._faults.point(f"composed {uri}")
        return facts

    async def delete(self, facts: ObjectFacts) -> None:
        found = self.objects.get(facts.uri)
        if found and found.facts.generation == facts.generation:
            self._faults.point(f"delete {facts.uri}")
            del self.objects[facts.uri]

    async def sign_get(self, uri: str, *, generation: int) -> SignedRequest:
        return SignedRequest(method="GET", url=uri, headers={})

    async def sign_put(self, uri: str, *, size: int, crc32c: str) -> SignedRequest:
        headers = {"x-goog-content-length-range": f"{size},{size}", "x-goog-hash": f"crc32c={crc32c}"}
        return SignedRequest(method="PUT", url=uri, headers=headers)


class MemoryBus:
    """The port `Bus` in memory. Published messages wait here until a test delivers them."""

    def __init__(self, faults: Faults | None = None) -> None:
        self._faults = faults or Faults()
        self.waiting: list[tuple[str, msgspec.Struct]] = []
        self.told: list[tuple[str, JobStatusChanged]] = []
        """For apps: no function of ours hears it."""
        self.published = 0

    async def publish(self, topic: str, event: msgspec.Struct) -> None:
        self._faults.point(f"publish {topic}")
        if isinstance(event, JobStatusChanged):
            self.told.append((topic, event))
        else:
            self.waiting.append((topic, event))
            self.published += 1
        self._faults.point(f"published {topic}")


class MemoryAttemptKeys:
    """The port `AttemptKeys` in memory."""

    def __init__(self, faults: Faults | None = None) -> None:
        self._faults = faults or Faults()
        self.keys: dict[str, tuple[str, datetime]] = {}
        self.limits: dict[str, tuple[str, tuple[str, ...] | None]] = {}
        """Of each key: who asked, and its models."""
        self.askers: dict[str, AskerKey] = {}
        self.down = False

    async def open(self, digest: str, *, name: str, until: datetime, asker: str, models: Sequence[str] | None) -> None:
        self._faults.point("open key")
        self.keys[digest] = (name, until)
        self.limits[digest] = (asker, None if models is None else tuple(models))

    async def close(self, digest: str) -> None:
        self._faults.point("close key")
        self.keys.pop(digest, None)

    async def asker(self, digest: str) -> AskerKey | None:
        if self.down:
            raise StoreUnavailable("the store is down")
        return self.askers.get(digest)


class MemoryWebhookEvents:
    """The port `WebhookEventStore` in memory."""

    def __init__(self) -> None:
        self.taken: dict[WebhookEvent, datetime] = {}

    async def take(self, event: WebhookEvent, *, until: datetime) -> bool:
        fresh = event not in self.taken
        self.taken.setdefault(event, until)
        return fresh

    async def give_back(self, event: WebhookEvent) -> None:
        self.taken.pop(event, None)


FREE = Offer(
    offer_id="free", provider="fake", pool="fake", spot=False, price_usd_micros_per_hour=0, gpu_count=0,
    gpu_memory_mib=0, reliability=1.0,
)  # fmt: skip


class MemoryCompute:
    """The port `ComputeProvider` in memory. Instances are only names; tests decide what runs on them."""

    name = "fake"
    kinds = frozenset({JobKind.BATCH.value})
    start_s_max = 60.0

    def __init__(self, faults: Faults | None = None) -> None:
        self._faults = faults or Faults()
        self.listing = Listing(offers=(FREE,))
        self.running: dict[str, RentalOrder] = {}
        self.states: dict[str, Instance] = {}
        """What the inventory says of some, if it is not the usual."""
        self.rented: list[str] = []
        self.released: list[str] = []
        self.unknown = ""
        """Why the inventory cannot be told; empty when it can."""
        self.full = False
        self.silent = False
        """Rents, and its answer is lost."""

    async def offers(self, wanted: InstanceRequirements) -> Listing | UnknownInventory:
        if self.unknown:
            return UnknownInventory(reason=self.unknown)
        return self.listing if wanted.kind in self.kinds else Listing()

    async def inventory(self) -> Inventory:
        if self.unknown:
            return UnknownInventory(reason=self.unknown)
        return KnownInventory(instances=frozenset(self._instance(label) for label in self.running))

    def _instance(self, label: str) -> Instance:
        usual = Instance(provider=self.name, instance_id=f"i-{label}", label=label)
        return self.states.get(label, usual)

    async def rent(self, order: RentalOrder) -> str:
        if self.full:
            raise ProviderUnavailable("no capacity")
        assert not self.unknown, "launched on an unknown inventory"
        self._faults.point("rent")
        assert order.label not in self.rented, "one attempt, two instances"
        self.rented.append(order.label)
        self.running[order.label] = order
        self._faults.point("rented")
        if self.silent:
            raise Transient("timed out")
        return self._instance(order.label).instance_id

    async def release(self, label: str) -> None:
        if self.unknown:
            raise Transient(self.unknown)
        self._faults.point("release")
        self.released.append(label)
        self.running.pop(label, None)


class World:
    """All dependencies of the services of `jobs`, in memory."""

    def __init__(self, *, limit: int = 10) -> None:
        self.faults = Faults()
        self.clock = FakeClock()
        self.jobs = MemoryJobs(self.faults)
        self.objects = MemoryObjects(self.faults)
        self.bus = MemoryBus(self.faults)
        self.keys = MemoryAttemptKeys(self.faults)
        self.compute = MemoryCompute(self.faults)
        self.market = MemoryMarket()
        plenty = Limit(period=Period.MONTH, limit_usd_micros=1_000_000_000)
        self.ledger = MemoryLedger(declared={"total": (plenty,)})
        self.threshold_events: list[ThresholdEvent] = []
        secrets = itertools.count()
        self.deps = JobDeps(
            jobs=self.jobs, objects=self.objects, bus=self.bus, keys=self.keys, compute={"fake": self.compute},
            clock=self.clock, bucket=BUCKET, url="http://goblin",
            limits={JobKind.BATCH: limit, JobKind.TRAINING: limit},
            new_secret=lambda: f"secret-{next(secrets):04d}", market=self.market,
            money=reservations.ReservationDeps(
                budget_client=BudgetClient(self.ledger, self.ledger, self.clock, announce=self._announce),
                ledger=self.ledger,
            ),
        )  # fmt: skip

    async def _announce(self, threshold_event: ThresholdEvent) -> None:
        self.threshold_events.append(threshold_event)

    def job(self, job_id: str = "j") -> Job:
        return self.jobs.stored[job_id].job

    def token(self, job_id: str = "j", attempt: int | None = None) -> str:
        """The token that an attempt's instance was given."""
        label = f"goblin-{job_id}-a{attempt or self.job(job_id).attempt}"
        return self.compute.running[label].environment["GOBLIN_ATTEMPT_TOKEN"]
