"""No job harms another: whatever one job's data, document, host, provider or offer raises, the tick goes on."""

import itertools
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import msgspec
import pytest

from goblin.core import events
from goblin.core.errors import Conflict, GoblinError, InvalidReport, MalformedEvent, StoreUnavailable
from goblin.core.events import JobRequested
from goblin.jobs import lifecycle, worker_api
from goblin.jobs.batch import RejectedInput, check_dataset
from goblin.jobs.domain.instances import AttemptLease, Inventory
from goblin.jobs.domain.job import Job, JobState, spec_digest
from goblin.jobs.domain.market import Listing
from goblin.jobs.policy import placement as placement_policy
from goblin.jobs.policy import state_machine
from goblin.jobs.policy.state_machine import FAULTS_MAX
from goblin.jobs.ports import UnreadableJob
from goblin.jobs.reconcile import reconcile
from tests.fakes.batch_host import Host, announce, dataset, given, item, results, spec
from tests.fakes.jobs import BUCKET, FREE, World

RAISED = [
    UnicodeDecodeError("utf-8", b"\xe9", 0, 1, "invalid"), RecursionError("too deep"), OverflowError("too large"),
    ValueError("odd"), KeyError("gone"), TypeError("other"), MemoryError(), ZeroDivisionError(), Conflict("no"),
]  # fmt: skip
raises = pytest.mark.parametrize("error", RAISED, ids=lambda error: type(error).__name__)
LINE = msgspec.json.encode(item(0))
BAD_LINES = {
    "Latin-1": LINE.replace(b"say 0", b"caf\xe9"),
    "Latin-1 in an unknown field": LINE[:-1] + b',"note":"caf\xe9"}',
    "UTF-16": LINE.decode().encode("utf-16"),
    "byte order mark": b"\xef\xbb\xbf" + LINE,
    "lone surrogate": LINE.replace(b"say 0", b"\\ud800"),
    "NUL": LINE.replace(b"say 0", b"\x00"),
    "deep": LINE.replace(b'"say 0"', b"[" * 957 + b"]" * 957),
    "very deep": LINE.replace(b'"say 0"', b"[" * 100_000 + b"]" * 100_000),
    "5,000 digits": LINE.replace(b'"say 0"', b"9" * 5000),
    "beyond a float": LINE.replace(b'"say 0"', b"1e999"),
    "not JSON": b"\x80\x81\x82",
}


async def two(world: World) -> None:
    """`bad`, which is older and so comes first, and `good`."""
    for name in ("bad", "good"):
        await lifecycle.request(given(world, 3, name), world.deps)
        world.clock.advance(1)


@pytest.mark.parametrize("line", BAD_LINES.values(), ids=BAD_LINES.keys())
async def test_a_dataset_that_cannot_be_read_refuses_its_own_job_with_the_line(line: bytes) -> None:
    world = World()
    await two(world)
    world.objects.write(f"gs://{BUCKET}/datasets/bad.jsonl", dataset(1) + line + b"\n")
    report = await reconcile(world.deps)
    assert world.job("bad").state is JobState.REFUSED
    assert "line 2: " in world.job("bad").reason
    assert world.job("good").state is JobState.STARTING
    assert report.errors == ()


async def test_the_line_and_the_byte_of_a_latin_1_dataset_are_named() -> None:
    world = World()
    wanted = given(world, 3)
    world.objects.write(str(wanted.dataset_uri), dataset(2) + BAD_LINES["Latin-1"] + b"\n")
    job = await lifecycle.request(wanted, world.deps)
    found = await check_dataset(job, world.deps)
    assert isinstance(found, RejectedInput)
    assert found.reason.endswith("line 3: byte 129 is 0xe9, which is not UTF-8"), found.reason


def steps(world: World, error: Exception) -> dict[str, Callable[[], None]]:
    """Places at which something of `bad` raises, each reached by another step of the tick."""

    def raising(port: Any, method: str) -> None:
        real = getattr(port, method)

        async def call(*args: Any, **kwargs: Any) -> Any:
            if any("bad" in str(getattr(one, "job_id", one)) for one in args):
                raise error
            return await real(*args, **kwargs)

        setattr(port, method, call)

    return {
        "its dataset": lambda: raising(world.objects, "stat"),
        "its place": lambda: raising(world.jobs, "place"),
        "its document": lambda: raising(world.jobs, "replace"),
        "its instance": lambda: raising(world.compute, "release"),
    }


@raises
@pytest.mark.parametrize("where", ["its dataset", "its place", "its document", "its instance"])
async def test_whatever_one_job_raises_the_others_go_on_and_strays_are_released(where: str, error: Exception) -> None:
    world = World()
    await two(world)
    order = replace(await ordered(world), label="goblin-stray-a1")
    world.compute.running["goblin-stray-a1"] = order
    if where == "its instance":
        world.compute.running["goblin-bad-a9"] = replace(order, label="goblin-bad-a9")
    steps(world, error)[where]()
    report = await reconcile(world.deps)
    assert world.job("good").state is JobState.STARTING
    assert "goblin-stray-a1" not in world.compute.running
    assert any("bad" in line for line in report.errors), report.errors


async def ordered(world: World) -> Any:
    """Any order: what a stray instance was rented by."""
    other = World()
    await lifecycle.request(given(other), other.deps)
    await reconcile(other.deps)
    return other.compute.running["goblin-j-a1"]


@raises
async def test_whatever_a_providers_answer_raises_it_is_unknown_and_the_others_are_used(error: Exception) -> None:
    world = World()
    await two(world)

    class Odd:
        """A provider whose adapter meets what it did not expect."""

        name, kinds, start_s_max = "odd", world.compute.kinds, 60.0

        async def inventory(self) -> Inventory:
            raise error

        async def offers(self, wanted: Any) -> Listing:
            raise error

    world.deps = replace(world.deps, compute={"odd": Odd(), **world.deps.compute})  # type: ignore[dict-item]
    report = await reconcile(world.deps)
    assert {world.job(name).state for name in ("bad", "good")} == {JobState.STARTING}
    [line] = report.errors
    assert line.startswith(f"odd: its answer cannot be read: {type(error).__name__}")


@raises
async def test_whatever_keeps_the_ledger_or_the_jobs_from_being_read_strays_are_released(error: Exception) -> None:
    for broken in ("freezes", "list_open", "load"):
        world = World()
        world.compute.running["goblin-stray-a1"] = await ordered(world)

        async def refuse(*_: object) -> Any:
            raise error

        port: Any = {"freezes": world.ledger, "list_open": world.jobs, "load": world.market}[broken]
        setattr(port, broken, refuse)
        with pytest.raises(type(error)):
            await reconcile(world.deps)
        assert world.compute.running == {}, broken


@raises
async def test_a_market_history_that_cannot_be_saved_ends_no_tick(error: Exception) -> None:
    world = World()
    await two(world)
    world.compute.running["goblin-stray-a1"] = await ordered(world)

    async def refuse(*_: object) -> Any:
        raise error

    world.market.save = refuse  # type: ignore[method-assign]
    await reconcile(world.deps)
    assert sorted(world.compute.running) == ["goblin-bad-a1", "goblin-good-a1"]


@pytest.mark.parametrize(
    "changes",
    [
        {"price_usd_micros_per_hour": -1},
        {"price_usd_micros_per_hour": 10**400},
        {"storage_usd_micros_per_gib_month": float("nan")},
        {"on_demand_usd_micros_per_hour": float("inf")},
        {"reliability": float("nan")},
        {"reliability": 1.5},
        {"download_mib_per_s": 0.0},
        {"download_mib_per_s": float("inf")},
        {"boot_s": float("nan")},
        {"ends_in_s": float("-inf")},
        {"gpu_count": 10**30},
        {"gpu_memory_mib": -5},
    ],
)
async def test_an_offer_with_impossible_numbers_is_left_out(changes: dict[str, Any]) -> None:
    odd = replace(FREE, offer_id="odd", **changes)
    assert not placement_policy.is_sound(odd)
    assert placement_policy.is_sound(FREE)
    world = World()
    world.compute.listing = Listing(offers=(odd, FREE))
    await two(world)
    assert (await reconcile(world.deps)).errors == ()
    assert {world.job(name).state for name in ("bad", "good")} == {JobState.STARTING}


# A job that raises for ever comes to an end or to a person.


def is_bad(world: World, *, at: str = "stat", error: Exception = RAISED[0]) -> None:
    real = getattr(world.objects, at)

    async def call(uri: str, *args: Any, **kwargs: Any) -> Any:
        if "bad" in uri:
            raise type(error)(*error.args)  # Not the same one, which would carry its stacks.
        return await real(uri, *args, **kwargs)

    setattr(world.objects, at, call)


async def test_a_job_that_raises_the_same_again_and_again_fails_with_it() -> None:
    world = World()
    await two(world)
    is_bad(world)
    for _ in range(FAULTS_MAX - 1):
        await reconcile(world.deps)
        assert world.job("bad").state is JobState.REQUESTED
    await reconcile(world.deps)
    bad = world.job("bad")
    assert bad.state is JobState.REFUSED
    assert bad.reason.startswith(f"{FAULTS_MAX} runs of reconcile in a row met the same error: 'utf-8' codec")
    await reconcile(world.deps)
    assert not world.job("bad").open


async def test_another_error_or_a_run_without_one_begins_the_count_anew() -> None:
    world = World()
    await two(world)
    is_bad(world)
    for _ in range(FAULTS_MAX - 1):
        await reconcile(world.deps)
    is_bad(world, error=KeyError("other"))
    await reconcile(world.deps)
    assert (world.job("bad").faults, world.job("bad").fault) == (1, ": KeyError")
    is_bad(world, error=StoreUnavailable("away"))
    await reconcile(world.deps)
    assert world.job("bad").faults == 1, "the bucket does not answer, which says nothing"
    world.objects = type(world.objects)()
    given(world, 3, "bad")
    world.deps = replace(world.deps, objects=world.objects)
    await reconcile(world.deps)
    assert (world.job("bad").faults, world.job("bad").fault) == (0, "")
    assert world.job("bad").state is JobState.STARTING


async def test_an_event_alone_counts_nothing() -> None:
    world = World()
    await two(world)
    is_bad(world)
    for _ in range(FAULTS_MAX + 1):
        await reconcile(world.deps, only="bad")
    assert (world.job("bad").state, world.job("bad").faults) == (JobState.REQUESTED, 0)


async def test_a_store_that_is_away_for_hours_fails_no_job() -> None:
    world = World()
    await two(world)
    is_bad(world, error=StoreUnavailable("away"))
    for _ in range(3 * FAULTS_MAX):
        await reconcile(world.deps)
    assert (world.job("bad").state, world.job("bad").faults) == (JobState.REQUESTED, 0)


async def test_jobs_that_raise_each_its_own_error_all_come_to_their_end() -> None:
    world = World()
    await two(world)

    async def refuse(uri: str) -> Any:
        raise KeyError("one") if "bad" in uri else TypeError("another")

    world.objects.stat = refuse  # type: ignore[method-assign]
    for _ in range(FAULTS_MAX):
        await reconcile(world.deps)
    assert {world.job(name).state for name in ("bad", "good")} == {JobState.REFUSED}


async def test_when_every_job_raises_the_same_the_fault_is_ours_and_none_fails() -> None:
    world = World()
    await two(world)

    async def refuse(*_: object, **__: object) -> Any:
        raise TypeError("a mistake of ours")

    world.objects.stat = refuse  # type: ignore[method-assign]
    for _ in range(FAULTS_MAX + 5):
        report = await reconcile(world.deps)
    assert {world.job(name).state for name in ("bad", "good")} == {JobState.REQUESTED}
    assert len(report.errors) == 2


@pytest.mark.parametrize("state", list(JobState))
def test_in_every_state_the_same_error_leads_to_an_end_and_an_ended_job_stays(state: JobState) -> None:
    now = datetime(2026, 11, 25, tzinfo=UTC)
    lease = AttemptLease(provider="fake", label="goblin-j-a1", token_sha256="", placed_at=now, until=now)
    job = Job(
        job_id="j", spec=spec(), spec_sha256="", state=state, requested_at=now, updated_at=now, attempt=1, lease=lease
    )
    for runs in itertools.count(1):
        transition = state_machine.faulted(job, ": KeyError", "gone", now=now)
        if transition is None:
            break
        job = transition.job
        assert runs <= FAULTS_MAX + 1
    assert job.state in (JobState.REFUSED, JobState.FAILED) if state not in state_machine.ENDED else job.state is state
    assert state in state_machine.ENDED or "gone" in job.reason


# A document that cannot be read.


async def test_a_document_that_cannot_be_read_is_left_out_and_named() -> None:
    world = World()
    await two(world)
    world.jobs.unreadable["bad"] = None
    await reconcile(world.deps)
    assert world.job("good").state is JobState.STARTING
    assert [job.job_id for job in await lifecycle.recent(10, world.deps, tenant=None)] == ["good"]
    for ask in (
        lifecycle.show("bad", world.deps, tenant=None),
        lifecycle.cancel("bad", world.deps, by="me", tenant=None),
    ):
        with pytest.raises(UnreadableJob, match="document jobs/bad"):
            await ask
    assert (await lifecycle.cancel("good", world.deps, by="me", tenant=None)).state is JobState.CANCELLED


async def test_its_instance_works_until_its_lease_is_over_and_is_released_then() -> None:
    world = World()
    await two(world)
    await reconcile(world.deps)
    world.jobs.unreadable["bad"] = lease = world.job("bad").lease
    assert lease is not None
    await reconcile(world.deps)
    assert "goblin-bad-a1" in world.compute.running
    world.clock.at = lease.until + timedelta(seconds=1)
    await reconcile(world.deps)
    assert "goblin-bad-a1" not in world.compute.running


# Specifications and events.

DEEP = b"[" * 957 + b"]" * 957
BAD_FIELDS = {
    "parameters": [b'{"a":' + DEEP + b"}", b"[]", b'"text"', b"null", b'{"a":1e999}', b'{"a":' + b"9" * 5000 + b"}"],
    "checkpoint_every": [b"9223372036854775808", b"9" * 30, b"9" * 5000],
    "deadline": [b'"0001-01-01T00:00:00+00:01"', b'"9999-12-31T23:59:59-00:01"', b'"10000-01-01T00:00:00Z"'],
    "budget_usd": [b'"1e999999"', b"1e40", b'"NaN"', b'"sNaN"', b'"Infinity"'],
    "model": [b'"caf\xe9"', b'"\\ud800"', b'"\x00"'],
    "unknown": [b'"\xff"', DEEP],
}


@pytest.mark.parametrize(
    ("field", "value"),
    [pytest.param(name, value, id=f"{name} {value[:20]!r}") for name, all_ in BAD_FIELDS.items() for value in all_],
)
def test_a_specification_that_cannot_be_kept_is_a_malformed_event(field: str, value: bytes) -> None:
    data = b'{"job_id": "j", "kind": "batch", "%s": %s}' % (field.encode(), value)
    with pytest.raises(MalformedEvent) as refusal:
        events.decode(JobRequested, data)
    named = field != "unknown" and b"\xe9" not in value and DEEP not in value and b"\\u" not in value
    assert not named or b"\x00" in value or field in refusal.value.message, refusal.value.message


@pytest.mark.parametrize("deadline", ["0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z", "2026-11-25T11:00:00+23:59"])
async def test_a_deadline_at_the_edge_of_the_calendar_harms_nobody(deadline: str) -> None:
    world = World()
    given(world, 3, "bad")
    data = msgspec.json.encode(
        msgspec.to_builtins(spec("bad"), builtin_types=(msgspec.Raw,)) | {"deadline": deadline, "est_hours": 10_000}
    )
    await lifecycle.request(events.decode(JobRequested, data), world.deps)
    await lifecycle.request(given(world, 3, "good"), world.deps)
    report = await reconcile(world.deps)
    assert report.errors == ()
    assert world.job("good").state is JobState.STARTING


@pytest.mark.parametrize("usd", ["NaN", "sNaN", "Infinity", "-1", "1e999999"])
async def test_a_stored_job_with_an_impossible_budget_is_closed_like_any_refused_one(usd: str) -> None:
    world = World()
    await lifecycle.request(spec("bad", budget_usd=Decimal(usd)), world.deps)
    await lifecycle.request(given(world, 3, "good"), world.deps)
    assert (await reconcile(world.deps)).errors == ()
    assert (world.job("bad").state, world.job("bad").open) == (JobState.REFUSED, False)
    assert world.job("good").state is JobState.STARTING


async def test_an_assertion_of_a_fake_is_not_isolated() -> None:
    """Or the promises of the simulation, which ports check, could break unseen."""
    world = World()
    await two(world)
    is_bad(world, error=AssertionError("a promise"))  # type: ignore[arg-type]
    with pytest.raises(AssertionError, match="a promise"):
        await reconcile(world.deps)


async def test_parameters_are_handed_out_as_they_came_and_compared_by_what_they_mean() -> None:
    world = World()
    text = b'{ "b": 1.50, "a": {"big": 123456789012345678901234567890, "x": [1e2]} }'
    given(world)
    await lifecycle.request(spec(parameters=msgspec.Raw(text)), world.deps)
    await reconcile(world.deps)
    work = await worker_api.claim("j", world.token(), world.deps)
    assert bytes(work.parameters) == text == bytes(world.job().spec.parameters)
    same = b'{"a":{"x":[100.0],"big":123456789012345678901234567890},"b":1.5}'
    assert (await lifecycle.request(spec(parameters=msgspec.Raw(same)), world.deps)).attempt == 1
    with pytest.raises(Conflict):
        await lifecycle.request(spec(parameters=msgspec.Raw(b'{"b": 1.51}')), world.deps)


def test_a_digest_is_what_older_versions_wrote() -> None:
    """They decoded the parameters and hashed them sorted: an event that comes again is still the same job."""
    wanted = spec(parameters=msgspec.Raw(b'{"b": [1, 2.50], "a": null}'), budget_usd=Decimal("1.5"))
    assert spec_digest(wanted) == "fc769e0ebf80956b923a46d31012534c2fc7cdc8f6b923f4fa835ffc8d87e1ee"


# Hosts.


@pytest.mark.parametrize("line", BAD_LINES.values(), ids=BAD_LINES.keys())
async def test_a_part_that_cannot_be_read_is_an_invalid_report_of_its_host(line: bytes) -> None:
    world = World()
    await lifecycle.request(given(world, 3), world.deps)
    await reconcile(world.deps)
    token = world.token()
    await worker_api.claim("j", token, world.deps)
    data = results(0, 2, 1) + line + b"\n"
    file = announce(data)
    upload_id, grants = await worker_api.begin_checkpoint("j", token, 3, [file], world.deps)
    assert world.objects.put(grants["part.jsonl"], data) == 200
    with pytest.raises(InvalidReport, match="line 3"):
        await worker_api.commit_checkpoint("j", token, 3, 0, upload_id, [file], world.deps)
    assert world.job().invalid_reports == 1


MANIFESTS = {
    **BAD_LINES,
    "64 bits": b'{"dataset_offset": 9223372036854775808}',
    "a year too many": b'{"saved_at": "9999-12-31T23:59:59-01:00"}',
}


@pytest.mark.parametrize("data", MANIFESTS.values(), ids=MANIFESTS.keys())
async def test_a_manifest_that_cannot_be_read_fails_its_own_job(data: bytes) -> None:
    world = World()
    await two(world)
    await reconcile(world.deps)
    host = Host(world, "bad", world.token("bad"))
    await host.run()
    assert world.job("bad").state is JobState.FINISHING
    where = world.job("bad").checkpoint
    assert where is not None
    if data.startswith((b'{"dataset', b'{"saved')):
        made: dict[str, Any] = msgspec.json.decode(world.objects.objects[where.manifest_uri].data)
        data = msgspec.json.encode(made | msgspec.json.decode(data))
    world.objects.write(where.manifest_uri, data)
    await reconcile(world.deps)
    assert world.job("bad").state is JobState.FAILED
    assert "is not a manifest" in world.job("bad").reason
    assert world.job("good").state is JobState.STARTING


async def test_nothing_but_our_errors_comes_out_of_a_readers_hands() -> None:
    """A manifest and a part of every kind, through each route of the worker API that reads them."""
    for data in BAD_LINES.values():
        world = World()
        await lifecycle.request(given(world, 3), world.deps)
        await reconcile(world.deps)
        token = world.token()
        await worker_api.claim("j", token, world.deps)
        world.objects.write(f"gs://{BUCKET}/checkpoints/j/00000001/a1/MANIFEST.json", data)
        world.objects.write(f"gs://{BUCKET}/checkpoints/j/²/a1/MANIFEST.json", data)
        asks: list[Awaitable[object]] = [
            worker_api.commit_checkpoint("j", token, 1, 0, "12345678", [announce(b"x")], world.deps),
            worker_api.finish("j", token, world.deps),
            worker_api.withdraw("j", token, "spot", world.deps, step=1),
        ]
        for ask in asks:
            try:
                await ask
            except GoblinError:
                continue
        await reconcile(world.deps)
