"""Who a job belongs to: who sees it, which models it asks, and what becomes of it when its API key goes."""

import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from msgspec import Raw

from goblin.core.errors import Conflict, InvalidRequest, NotFound
from goblin.core.events import JobRequested, decode
from goblin.jobs import attempt_logs, lifecycle, worker_api
from goblin.jobs.domain.job import AskerKey, JobOwner, JobState, spec_digest
from goblin.jobs.ports import UnreadableJob
from goblin.jobs.reconcile import reconcile
from tests.fakes.batch_host import Host, given, item, spec
from tests.fakes.jobs import World
from tests.fakes.training_host import TrainingHost
from tests.fakes.training_host import spec as training_spec

ANN = JobOwner(tenant="tenant:ann", key_digest="aa", key_name="ann's", models=("m", "org/*"))
BOB = JobOwner(tenant="key:bb", key_digest="bb", key_name="bob's")
GOOD = AskerKey(disabled=False, expires_at=None, runs_jobs=True)


def world() -> World:
    made = World()
    made.keys.askers = {"aa": GOOD, "bb": GOOD}
    return made


def lines(*bodies: dict[str, Any]) -> bytes:
    return b"\n".join(json.dumps(item(number, body=body)).encode() for number, body in enumerate(bodies))


async def words(call: Any) -> str:
    with pytest.raises(NotFound) as refused:
        await call
    return refused.value.message


async def test_another_tenants_job_is_one_that_never_was() -> None:
    here = world()
    await lifecycle.submit(given(here), ANN, here.deps)
    await reconcile(here.deps)
    for tenant in ("key:bb", "operator", "tenant:", "ann", ""):
        never = await words(lifecycle.show("k", here.deps, tenant=tenant))
        for told in (
            await words(lifecycle.show("j", here.deps, tenant=tenant)),
            await words(lifecycle.cancel("j", here.deps, by="bob", tenant=tenant)),
            await words(attempt_logs.read("j", 99, here.deps, tenant=tenant)),
        ):
            assert told == never.replace("'k'", "'j'")
        assert await lifecycle.recent(9, here.deps, tenant=tenant) == []
    assert here.job().state is JobState.STARTING, "nothing of it was touched"
    for viewer in ("tenant:ann", None):
        assert (await lifecycle.show("j", here.deps, tenant=viewer)).job_id == "j"
        assert [one.job_id for one in await lifecycle.recent(9, here.deps, tenant=viewer)] == ["j"]
    assert (await lifecycle.cancel("j", here.deps, by="ann", tenant="tenant:ann")).state is JobState.CANCELLED


async def test_a_taken_id_is_refused_in_the_same_words_whatever_job_has_it() -> None:
    here = world()
    first = await lifecycle.submit(given(here), ANN, here.deps)
    assert (await lifecycle.submit(spec(), ANN, here.deps)).requested_at == first.requested_at
    told = set()
    for other in (spec(), spec(checkpoint_every=99)):
        for owner in (BOB, JobOwner()):
            with pytest.raises(Conflict) as refused:
                await lifecycle.submit(other, owner, here.deps)
            told.add(refused.value.message)
    assert told == {"Job id 'j' is taken. Choose another job_id."}
    assert here.job().owner == ANN
    # The same tenant with another key is the same owner, and its job stays the first key's.
    await lifecycle.submit(spec(), replace(ANN, key_digest="cc", models=None), here.deps)
    assert here.job().owner == ANN


async def test_a_job_that_cannot_be_read_is_nobodys_but_the_operators() -> None:
    here = world()
    await lifecycle.submit(given(here), ANN, here.deps)
    here.jobs.unreadable["j"] = None
    for tenant in ("tenant:ann", "key:bb"):
        assert "There is no job 'j'" in await words(lifecycle.show("j", here.deps, tenant=tenant))
    with pytest.raises(UnreadableJob):
        await lifecycle.show("j", here.deps, tenant=None)
    with pytest.raises(Conflict, match="is taken"):
        await lifecycle.submit(spec(), BOB, here.deps)


@pytest.mark.parametrize(
    ("tenant", "owner"), [(None, "operator"), ("ann", "tenant:ann"), ("operator", "tenant:operator")]
)
async def test_an_event_is_the_operators_or_that_of_the_tenant_it_names(tenant: str | None, owner: str) -> None:
    here = world()
    fields = {"job_id": "j", "kind": "training"} | ({} if tenant is None else {"tenant": tenant})
    await lifecycle.request(decode(JobRequested, json.dumps(fields).encode()), here.deps)
    assert here.job().owner == JobOwner(tenant=owner)


async def test_a_caller_may_not_name_a_tenant() -> None:
    here = world()
    with pytest.raises(InvalidRequest, match="tenant of its API key"):
        await lifecycle.submit(spec(tenant="bob"), ANN, here.deps)
    assert not here.jobs.stored


def test_a_specification_keeps_the_hash_that_it_had_before_tenants() -> None:
    from datetime import UTC, datetime
    from decimal import Decimal

    asked = JobRequested(
        job_id="j", kind="training", parameters=Raw(b'{"b": [1, {"z": 1, "a": null}], "a": 0.5}'),
        budget_usd=Decimal("1.50"), deadline=datetime(2026, 12, 1, tzinfo=UTC), gpu_types=("RTX_4090",),
    )  # fmt: skip
    assert spec_digest(asked) == "83d11bd326c8dbbe03434442ed4c11ad60fd1d07cb8b6345534bae7087ce6bbb"


@pytest.mark.parametrize(
    ("bodies", "model", "line"),
    [
        ([{"model": "m"}, {"model": "org/x"}], None, None),
        ([{"model": "m"}, {"model": "secret"}], None, 2),
        ([{"model": "m"}, {"model": "organ"}], None, 2),
        ([{}], "m", None),
        ([{"model": "m"}, {}], "secret", 2),
        # The worker sets the job's model where an item names none; a null is a name.
        ([{"model": None}], "secret", None),
        ([{"model": 7}, {"model": ""}, {}], None, None),
    ],
)
async def test_an_item_that_the_asker_may_not_ask_refuses_the_job_by_line(
    bodies: list[dict[str, Any]], model: str | None, line: int | None
) -> None:
    here = world()
    wanted = spec(model=model)
    here.objects.write(str(wanted.dataset_uri), lines(*bodies))
    await lifecycle.submit(wanted, ANN, here.deps)
    await reconcile(here.deps)
    if line is None:
        assert here.job().state is JobState.STARTING
        return
    assert here.job().state is JobState.REFUSED
    assert f"line {line}: the API key that asked for the job may not use the model" in here.job().reason
    assert not here.compute.rented


@pytest.mark.parametrize(
    ("owner", "bodies", "models"),
    [
        (ANN, [{"model": "org/b"}, {"model": "m"}, {"model": "m"}], ("m", "org/b")),
        (BOB, [{"model": "z"}, {}], ("default", "z")),
        (None, [{"model": "z"}], ("z",)),
        # Neither is a model that any request can ask, and a star would open every other.
        (BOB, [{"model": "*"}, {"model": "org/*"}, {"model": "x" * 257}, {"model": 1}], ()),
    ],
)
async def test_an_attempts_key_asks_its_items_models_for_its_asker(
    owner: JobOwner | None, bodies: list[dict[str, Any]], models: tuple[str, ...]
) -> None:
    here = world()
    wanted = spec(model="default")
    here.objects.write(str(wanted.dataset_uri), lines(*bodies))
    await lifecycle.request(wanted, here.deps, owner=owner)
    await reconcile(here.deps)
    digest = worker_api.digest(here.token())
    assert here.keys.limits == {digest: (owner.key_digest if owner else "", models)}
    host = Host(here, "j", here.token())
    await host.step()
    here.clock.advance(20)
    for _ in range(40):  # Past the renewal of the key.
        here.clock.advance(40)
        await worker_api.heartbeat("j", host.token, 0, here.deps)
    assert here.keys.keys[digest][1] > here.clock.now() + timedelta(minutes=30)
    assert here.keys.limits == {digest: (owner.key_digest if owner else "", models)}


async def test_a_dataset_names_a_bounded_number_of_models() -> None:
    here = world()
    wanted = spec()
    here.objects.write(str(wanted.dataset_uri), lines(*({"model": f"m{n}"} for n in range(101))))
    await lifecycle.submit(wanted, BOB, here.deps)
    await reconcile(here.deps)
    assert here.job().state is JobState.REFUSED
    assert "line 101: more than 100 different models" in here.job().reason


LOST: list[tuple[AskerKey | None, str]] = [
    (None, "has expired or was deleted"),
    (replace(GOOD, disabled=True), "was revoked"),
    (replace(GOOD, expires_at=World().clock.now()), "has expired"),
    (replace(GOOD, runs_jobs=False), "may run no jobs"),
]


@pytest.mark.parametrize(("key", "why"), LOST)
async def test_a_waiting_job_ends_with_its_key_and_says_so(key: AskerKey | None, why: str) -> None:
    here = world()
    here.compute.full = True
    await lifecycle.submit(given(here), BOB, here.deps)
    await lifecycle.submit(given(here, job_id="k"), ANN, here.deps)
    await reconcile(here.deps)
    assert here.job().state is JobState.QUEUED
    here.keys.askers |= {"bb": key} if key else {}
    if key is None:
        del here.keys.askers["bb"]
    await reconcile(here.deps)
    assert here.job().state is JobState.FAILED
    assert here.job().reason.startswith('the API key "bob\'s", which asked for the job, ')
    assert why in here.job().reason
    assert here.job("k").state is JobState.QUEUED, "another key's job waits on"
    here.compute.full = False
    here.clock.advance(3600)
    await reconcile(here.deps)
    assert [label.rpartition("-")[0] for label in here.compute.rented] == ["goblin-k"]


@pytest.mark.parametrize(("key", "why"), LOST)
async def test_a_running_batch_saves_and_ends_with_its_key(key: AskerKey | None, why: str) -> None:
    here = world()
    await lifecycle.submit(given(here), BOB, here.deps)
    await reconcile(here.deps)
    host = Host(here, "j", here.token())
    await host.step()
    await host.step()
    here.keys.askers = {} if key is None else {"bb": key}
    await reconcile(here.deps)
    beat = await worker_api.heartbeat("j", host.token, 3, here.deps)
    assert beat.stop is not None
    assert why in beat.stop
    await worker_api.withdraw("j", host.token, beat.stop, here.deps, step=3)
    await reconcile(here.deps)
    assert here.job().state is JobState.FAILED
    assert why in here.job().reason
    assert here.job().saved_step == 3
    assert here.keys.keys == {}
    await reconcile(here.deps)
    assert len(here.compute.rented) == 1
    assert not here.job().open


async def test_a_host_that_does_not_stop_is_stopped() -> None:
    here = world()
    await lifecycle.submit(given(here), BOB, here.deps)
    await reconcile(here.deps)
    host = Host(here, "j", here.token())
    await host.step()
    here.keys.askers["bb"] = replace(GOOD, disabled=True)
    for _ in range(8):
        await reconcile(here.deps)
        here.clock.advance(30)
        if here.job().state is JobState.RUNNING:
            await worker_api.heartbeat("j", host.token, 0, here.deps)
    assert here.job().state is JobState.FAILED
    assert not here.compute.running


async def test_a_training_ends_with_its_key_too() -> None:
    here = world()
    here.compute.kinds = frozenset({"training"})
    wanted = training_spec()
    here.objects.write(str(wanted.dataset_uri), b"text")
    await lifecycle.submit(wanted, BOB, here.deps)
    await reconcile(here.deps)
    host = TrainingHost(here, here.token())
    await host.claim()
    del here.keys.askers["bb"]
    await reconcile(here.deps)
    stop = here.job().stop
    assert stop is not None
    assert stop.ends_job


async def test_an_unread_key_ends_nothing_and_a_key_is_read_once_for_all_its_jobs() -> None:
    here = world()
    here.compute.full = True
    for number in range(5):
        await lifecycle.submit(given(here, job_id=f"j{number}"), BOB, here.deps)
    await lifecycle.request(given(here, job_id="topic"), here.deps)
    here.keys.down = True
    report = await reconcile(here.deps)
    assert [line for line in report.errors if "bb" in line] == ["API key bb: the store is down"]
    assert {stored.job.state for stored in here.jobs.stored.values()} == {JobState.QUEUED}


async def test_a_fault_with_one_key_or_job_ends_no_other_job_and_spares_none() -> None:
    here = world()
    here.compute.full = True
    for job_id, owner in (("a", ANN), ("b", BOB), ("c", replace(BOB, key_digest="cc"))):
        await lifecycle.submit(given(here, job_id=job_id), owner, here.deps)
    asked = here.keys.asker

    async def odd(digest: str) -> AskerKey | None:
        if digest == "aa":
            raise RecursionError("an odd document")
        return await asked(digest)

    here.keys.asker = odd  # type: ignore[method-assign]
    del here.keys.askers["bb"]
    report = await reconcile(here.deps)
    assert "API key aa: RecursionError: an odd document" in report.errors
    assert [here.job(job_id).open and here.job(job_id).ended_at is None for job_id in "abc"] == [True, False, False]


async def test_what_has_ended_needs_no_key() -> None:
    here = world()
    await lifecycle.submit(given(here), BOB, here.deps)
    await reconcile(here.deps)
    await Host(here, "j", here.token()).run()
    assert here.job().state is JobState.FINISHING
    here.keys.askers = {}
    await reconcile(here.deps)
    assert here.job().state is JobState.SUCCEEDED


@pytest.mark.parametrize(
    ("owner", "may"),
    [
        (ANN, True),
        (replace(ANN, key_digest="cc"), True),
        (BOB, False),
        (replace(BOB, sees_all=True), True),
        (JobOwner(), True),
        (JobOwner(tenant="tenant:bob"), False),
    ],
)
async def test_a_job_reads_what_its_own_tenants_jobs_wrote(owner: JobOwner, may: bool) -> None:
    here = world()
    here.keys.askers["cc"] = GOOD
    await lifecycle.submit(given(here), ANN, here.deps)
    await reconcile(here.deps)
    await Host(here, "j", here.token()).run()
    await reconcile(here.deps)
    wrote = [uri for uri in here.objects.objects if "/outputs/" in uri or "/checkpoints/" in uri]
    here.objects.write("gs://bucket/logs/j/a1/000000", b"text")
    here.objects.write("gs://bucket/logs/never/a1/000000", b"text")
    here.compute.kinds = frozenset({"batch", "training"})
    missing = "gs://bucket/datasets/missing"
    for number, uri in enumerate([*wrote, "gs://bucket/logs/j/a1/000000", "gs://bucket/logs/never/a1/000000", missing]):
        for kind in ("training", "batch"):
            job_id = f"{kind}{number}"
            more = {} if kind == "training" else {"output_uri": f"gs://bucket/outputs/{job_id}"}
            asked = JobRequested(job_id=job_id, kind=kind, dataset_uri=uri, **more)
            await lifecycle.request(asked, here.deps, owner=owner)
            await reconcile(here.deps, only=job_id)
            gone = here.job(job_id).reason == f"{uri} does not exist; upload the dataset first"
            orphan = "never" in uri and owner.tenant != "operator" and not owner.sees_all
            assert gone is (not may or orphan or uri == missing), (uri, here.job(job_id).reason)


async def test_an_output_outlives_its_job_and_stays_its_tenants() -> None:
    here = world()
    await lifecycle.submit(given(here), ANN, here.deps)
    await reconcile(here.deps)
    await Host(here, "j", here.token()).run()
    await reconcile(here.deps)
    del here.jobs.stored["j"]
    here.compute.kinds = frozenset({"training"})
    for owner, may in ((ANN, True), (BOB, False)):
        job_id = owner.key_digest
        asked = JobRequested(job_id=job_id, kind="training", dataset_uri="gs://bucket/outputs/j.jsonl")
        await lifecycle.submit(asked, owner, here.deps)
        await reconcile(here.deps, only=job_id)
        assert (here.job(job_id).state is not JobState.REFUSED) is may
