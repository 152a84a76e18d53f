"""Jobs placed on a market: what is written, reserved and rented, in this order; what is asked to stop and why."""

from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from goblin.billing.domain.accounts import Limit, Period
from goblin.billing.domain.ledger import BudgetAction, EntryKind, LedgerEntry
from goblin.core.errors import ProviderUnavailable, StoreUnavailable, TopicForbidden, UnknownTopic
from goblin.core.events import JobRequested
from goblin.jobs import lifecycle, worker_api
from goblin.jobs.domain.instances import Instance, InstanceState
from goblin.jobs.domain.job import AskerKey, JobOwner, JobState
from goblin.jobs.domain.market import Listing, Offer
from goblin.jobs.policy import reservations
from goblin.jobs.policy.state_machine import BACKOFF_S_MAX
from goblin.jobs.reconcile import reconcile
from tests.fakes.jobs import BUCKET, START, MemoryCompute, World

SPOT = Offer(
    offer_id="s", provider="fake", pool="fake/RTX_4090", machine_id="m1", spot=True, gpu="RTX_4090",
    price_usd_micros_per_hour=300_000, on_demand_usd_micros_per_hour=600_000, gpu_memory_mib=24_000, reliability=0.99,
)  # fmt: skip
ON_DEMAND = replace(SPOT, offer_id="o", spot=False, price_usd_micros_per_hour=600_000)


def market(*offers: Offer) -> World:
    world = World()
    world.compute.kinds = frozenset({"training"})
    world.compute.listing = Listing(offers=offers or (SPOT, ON_DEMAND))
    world.objects.write(f"gs://{BUCKET}/datasets/d.txt", b"text")
    return world


def training(**changes: Any) -> JobRequested:
    fields = {"job_id": "j", "kind": "training", "gpu_types": ("RTX_4090",), "est_hours": 5.0}
    fields["dataset_uri"] = f"gs://{BUCKET}/datasets/d.txt"
    return JobRequested(**{**fields, **changes})


async def requested(world: World, **changes: Any) -> None:
    await lifecycle.request(training(**changes), world.deps)
    await reconcile(world.deps)


async def tick(world: World, minutes: float = 1) -> None:
    world.clock.advance(60 * minutes)
    await reconcile(world.deps)


async def beat(world: World, minutes: int) -> None:
    """A worker that is heard of all the time and gets further."""
    for _ in range(minutes * 2):
        await worker_api.heartbeat("j", world.token(), world.job().step + 1, world.deps)
        world.clock.advance(30)
        await reconcile(world.deps)


def total(world: World) -> tuple[int, int]:
    """Spent and lent of everything."""
    usage = world.ledger.kept["total"].usages[Period.LIFETIME]
    return usage.spent_usd_micros, usage.allocated_usd_micros


async def test_a_job_is_placed_on_spot_with_its_money_put_aside_and_the_choice_explained() -> None:
    world = market()
    await requested(world)
    job = world.job()
    assert job.state is JobState.STARTING
    assert job.placement is not None
    assert job.placement.offer == SPOT
    assert [bool(candidate.rejected) for candidate in job.placement.candidates] == [False, True]
    [reservation] = job.reservations
    assert total(world) == (0, reservation.reserved_usd_micros)
    assert reservation.reserved_usd_micros > 300_000, "an hour of work, the start and the tail"
    [order] = world.compute.running.values()
    assert order.bid_usd_micros_per_hour == job.placement.bid_usd_micros_per_hour
    assert set(order.environment) == {"GOBLIN_URL", "GOBLIN_ATTEMPT_TOKEN"}
    assert not world.keys.keys, "a training job's token opens no models"


async def test_the_key_that_asked_pays_for_the_instance_within_its_budget() -> None:
    ann = JobOwner(tenant="tenant:t", key_digest="aa", key_name="ann's key")
    world = market()
    world.keys.askers["aa"] = AskerKey(disabled=False, expires_at=None, runs_jobs=True)

    def limit(usd_micros: int) -> None:
        limits = (Limit(period=Period.MONTH, limit_usd_micros=usd_micros),)
        world.ledger.declared = {**world.ledger.declared, "key/ann-s-key": limits}

    limit(5_000_000)
    await lifecycle.submit(training(), ann, world.deps)
    await reconcile(world.deps)
    [reservation] = world.job().reservations
    assert reservation.payer == "key/ann-s-key"
    usage = world.ledger.kept["key/ann-s-key"].usages[Period.MONTH]
    assert usage.allocated_usd_micros == reservation.reserved_usd_micros
    # What is left does not pay for a second one, of this key. Another key's job is not concerned.
    limit(reservation.reserved_usd_micros + 1_000)
    await lifecycle.submit(training(job_id="k"), ann, world.deps)
    await lifecycle.request(training(job_id="topic"), world.deps)
    world.compute.listing = Listing(offers=tuple(replace(SPOT, offer_id=f"s{n}", machine_id=f"m{n}") for n in range(9)))
    await tick(world)
    assert "budget of key/ann-s-key" in world.job("k").reason
    assert world.job("topic").state is JobState.STARTING
    await lifecycle.cancel("j", world.deps, by="me", tenant=None)
    for _ in range(3):
        await tick(world)
    [entry] = [entry for entry in world.ledger.settled() if "job/j" in entry.also]
    assert entry.accounts == ("total", "fake", "fake/j", "job/j", "key/ann-s-key")


async def test_a_frozen_key_rents_nothing() -> None:
    ann = JobOwner(key_digest="aa", key_name="ann")
    world = market()
    world.keys.askers["aa"] = AskerKey(disabled=False, expires_at=None, runs_jobs=True)
    frozen = LedgerEntry(entry_id="f", kind=EntryKind.FREEZE, account="key/ann", amount_usd_micros=0, at=START)
    await world.ledger.record(frozen)
    await lifecycle.submit(training(), ann, world.deps)
    await lifecycle.request(training(job_id="topic"), world.deps)
    await reconcile(world.deps)
    assert world.job().state is JobState.QUEUED
    assert world.job("topic").state is JobState.STARTING


async def test_nothing_is_rented_without_the_ledger() -> None:
    world = market()
    await lifecycle.request(training(), world.deps)
    original = world.ledger.exchange

    async def silent(*args: Any, **kwargs: Any) -> Any:
        world.ledger.down = True
        return await original(*args, **kwargs)

    world.ledger.exchange = silent  # type: ignore[method-assign]
    await reconcile(world.deps)
    assert not world.compute.rented
    assert world.job().state is JobState.QUEUED
    assert "Without the ledger nothing is rented" in world.job().reason
    world.ledger.exchange = original  # type: ignore[method-assign]
    world.ledger.down = False
    await tick(world)
    assert world.job().state is JobState.STARTING


async def test_a_budget_that_covers_no_slice_ends_the_job_and_one_that_starts_anew_makes_it_wait() -> None:
    poor = market()
    await requested(poor, budget_usd=Decimal("0.01"), est_hours=None)
    await tick(poor)
    assert poor.job().state is JobState.FAILED
    assert "budget of job/j" in poor.job().reason
    assert not poor.compute.rented

    waiting = market()
    await waiting.ledger.limit("fake", Period.MONTH, Limit(period=Period.MONTH, limit_usd_micros=1000))
    await requested(waiting)
    assert waiting.job().state is JobState.QUEUED
    assert "resets at 2026-12-01" in waiting.job().reason
    assert not waiting.compute.rented
    assert total(waiting) == (0, 0)


async def test_nothing_is_rented_where_no_budget_says_how_much_may_be_spent() -> None:
    world = market()
    world.ledger.declared = {}
    await requested(world)
    waits = world.job().no_placement
    assert world.job().state is JobState.QUEUED
    assert waits is not None
    assert "nothing is rented without a budget: run `goblin budget set fake 50`" in waits.reason
    await world.ledger.limit("fake", Period.MONTH, Limit(period=Period.MONTH, limit_usd_micros=50_000_000))
    await tick(world)
    assert world.job().state is JobState.STARTING

    own = market()
    own.ledger.declared = {}
    await requested(own, budget_usd=Decimal(10))
    assert own.job().state is JobState.STARTING


async def test_what_a_provider_refuses_costs_nothing_and_is_asked_for_again() -> None:
    world = market()
    world.compute.full = True
    await requested(world)
    await tick(world)
    assert world.job().state is JobState.QUEUED
    world.compute.full = False
    await tick(world, BACKOFF_S_MAX / 60)
    assert world.job().state is JobState.STARTING
    assert world.job().spent_usd_micros == 0
    assert len(world.job().reservations) == 1
    assert total(world) == (0, world.job().reservations[0].reserved_usd_micros)


async def test_an_outbid_instance_is_released_paid_for_and_the_job_placed_anew_at_once() -> None:
    world = market()
    await requested(world)
    await worker_api.claim("j", world.token(), world.deps)
    stopped = Instance(
        provider="fake", instance_id="i", label="goblin-j-a1", state=InstanceState.STOPPED, detail="outbid"
    )
    world.compute.states["goblin-j-a1"] = stopped
    await tick(world, 0.5)
    job = world.job()
    assert (job.state, job.attempt, job.preemptions) == (JobState.STARTING, 2, 1)
    assert "goblin-j-a1" not in world.compute.running
    await tick(world, 0.4)
    await tick(world, 0.4)
    job = world.job()
    assert [reservation.label for reservation in job.reservations] == ["goblin-j-a2"]
    assert 2_000 <= job.spent_usd_micros <= 40_000, "a minute or two of 0.30 dollars an hour"
    assert total(world)[0] == job.spent_usd_micros
    assert world.market.history.pools["fake/RTX_4090"].rates.losses > 0.9


async def test_rent_is_prolonged_while_it_works_and_settled_after_the_end() -> None:
    world = market()
    await requested(world)
    await worker_api.claim("j", world.token(), world.deps)
    first = world.job().reservations[0]
    await beat(world, 90)
    job = world.job()
    assert job.state is JobState.RUNNING
    assert job.reservations[0].until > first.until
    await lifecycle.cancel("j", world.deps, by="somebody", tenant=None)
    await tick(world)
    await tick(world)
    job = world.job()
    assert (job.reservations, job.open) == ((), False)
    spent = total(world)
    assert spent == (job.spent_usd_micros, 0)
    price = first.price_usd_micros_per_hour
    assert 1.5 * price <= job.spent_usd_micros - first.start_usd_micros <= 1.6 * price


async def test_a_job_whose_budget_runs_out_is_asked_to_save_and_stop_in_time_and_says_so() -> None:
    world = market()
    await requested(world, budget_usd=Decimal("0.75"), est_hours=None)
    await worker_api.claim("j", world.token(), world.deps)
    for _ in range(400):
        if world.job().stop is not None:
            break
        await beat(world, 1)
    job = world.job()
    assert job.stop is not None
    assert job.stop.ends_job
    assert "budget of job/j" in job.stop.reason
    assert world.clock.now() < job.stop.by < reservations.leave_at(job.reservations[0]) + timedelta(seconds=1)
    assert job.reasons[-1].text.startswith("asked to stop: ")
    await worker_api.withdraw("j", world.token(), "saved", world.deps)
    await tick(world)
    assert world.job().state is JobState.FAILED
    assert "budget of job/j" in world.job().reason
    assert sum(total(world)) <= 750_000


async def test_who_does_not_heed_a_stop_is_taken_away_before_the_money_ends() -> None:
    world = market()
    await requested(world, budget_usd=Decimal("0.75"), est_hours=None)
    await worker_api.claim("j", world.token(), world.deps)
    until = world.job().reservations[0].until
    for _ in range(400):
        if world.job().state is not JobState.RUNNING:
            break
        until = world.job().reservations[0].until
        await beat(world, 1)
    assert not world.compute.running
    assert world.clock.now() <= until
    assert total(world)[0] + total(world)[1] <= 750_000


@pytest.mark.parametrize(("action", "stops"), [(BudgetAction.STOP_JOBS, True), (BudgetAction.FREEZE, False)])
async def test_a_freeze_keeps_jobs_from_starting_and_stops_them_if_it_says_so(
    action: BudgetAction, stops: bool
) -> None:
    world = market()
    await requested(world)
    await worker_api.claim("j", world.token(), world.deps)
    freeze = LedgerEntry(
        entry_id="freeze:1", kind=EntryKind.FREEZE, account="fake", amount_usd_micros=0, at=START, note="enough",
        reaction=action,
    )  # fmt: skip
    await world.ledger.record(freeze)
    await lifecycle.request(training(job_id="k"), world.deps)
    await tick(world, 0.5)
    await tick(world, 0.2)
    assert (world.job().stop is not None) is stops
    assert world.job("k").state is JobState.QUEUED
    assert world.job("k").no_placement is not None
    assert "fake is frozen: enough" in world.job("k").no_placement.reason
    assert world.job("k").why == world.job("k").no_placement.reason


async def test_a_job_that_waits_says_for_what_and_nothing_beside_it() -> None:
    world = market()
    freeze = LedgerEntry(
        entry_id="freeze:1", kind=EntryKind.FREEZE, account="fake", amount_usd_micros=0, at=START, note="enough",
        reaction=BudgetAction.FREEZE,
    )  # fmt: skip
    await world.ledger.record(freeze)
    await requested(world)
    assert "fake is frozen: enough" in world.job().why
    # The freeze ends, and another job has the only place.
    world.ledger.frozen.clear()
    deps = replace(world.deps, limits={"training": 1})
    await lifecycle.request(training(job_id="first", priority="high"), deps)
    for _ in range(2):
        world.clock.advance(5)
        await reconcile(deps)
        assert world.job("first").state is JobState.STARTING
        assert world.job().why == "the only place of kind training is taken"
    written = len(world.jobs.history["j"])
    await reconcile(deps)
    assert len(world.jobs.history["j"]) == written, "it is written once"
    # It has a place again: a machine that was lost is said, not an old reason to wait.
    await lifecycle.cancel("first", deps, by="me", tenant=None)
    for _ in range(3):
        world.clock.advance(5)
        await reconcile(deps)
    assert world.job().state is JobState.STARTING
    assert "attempt 1" in world.job().reasons[-2].text
    assert not [line.text for line in world.job().reasons if "free place" in line.text]


async def test_a_machine_that_never_boots_is_left_alone_afterwards() -> None:
    world = market(SPOT)
    await requested(world)
    await tick(world, 5)
    assert world.market.history.machines["fake/m1"].last_kind == "boot"
    await tick(world)
    assert world.job().state is JobState.QUEUED
    assert world.job().no_placement is not None
    assert "the machine failed before" in world.job().no_placement.reason


async def test_a_deadline_nobody_could_keep_is_refused_before_anything_is_rented() -> None:
    world = market()
    await requested(world, deadline=START + timedelta(hours=5))
    assert world.job().state is JobState.REFUSED
    assert "the nearest possible one is" in world.job().reason
    assert not world.compute.rented


async def test_a_deadline_is_promised_only_with_a_place_and_the_place_is_kept() -> None:
    world = market()
    world.deps = replace(world.deps, limits={"training": 1})
    await requested(world)
    promised = training(job_id="p", deadline=START + timedelta(hours=40), priority="low")
    await lifecycle.request(promised, world.deps)
    await tick(world, 0.4)
    waits = world.job("p")
    assert waits.state is JobState.REQUESTED
    assert waits.no_placement is not None
    assert "once one of the 1 places of kind training is free" in waits.no_placement.reason

    world.compute.full = True
    await lifecycle.cancel("j", world.deps, by="somebody", tenant=None)
    await tick(world, 0.4)
    assert world.job("p").state is JobState.QUEUED
    world.compute.full = False
    await lifecycle.request(training(job_id="k", priority="high"), world.deps)
    await tick(world)
    assert (world.job("p").state, world.job("k").state) == (JobState.STARTING, JobState.QUEUED)


async def test_what_nobody_wants_is_released_though_the_ledger_is_silent() -> None:
    world = market()
    await requested(world)
    world.compute.unknown = "timeout"
    await lifecycle.cancel("j", world.deps, by="somebody", tenant=None)
    world.compute.unknown = ""
    assert world.compute.running
    world.ledger.down = True
    with pytest.raises(StoreUnavailable):
        await reconcile(world.deps)
    assert not world.compute.running


async def test_why_a_job_waits_is_written_once_for_each_reason() -> None:
    world = market(replace(SPOT, price_usd_micros_per_hour=2_000_000, on_demand_usd_micros_per_hour=3_000_000))
    await requested(world, max_price_per_hour=Decimal(1))
    assert world.job().no_placement is not None
    writes = len(world.jobs.history["j"])
    await tick(world)
    await tick(world)
    assert len(world.jobs.history["j"]) == writes


async def test_a_job_that_fits_nothing_keeps_nobody_else_from_its_place() -> None:
    world = market()
    world.deps = replace(world.deps, limits={"training": 1})
    await lifecycle.request(training(job_id="big", max_price_per_hour=Decimal("0.01"), priority="high"), world.deps)
    await lifecycle.request(training(), world.deps)
    await reconcile(world.deps)
    assert world.job("big").state is JobState.QUEUED
    assert world.job().state is JobState.STARTING


async def test_two_jobs_of_one_run_do_not_ask_for_the_same_machine() -> None:
    other = replace(SPOT, offer_id="t", machine_id="m2", price_usd_micros_per_hour=310_000)
    world = market(SPOT, other)
    for job_id in ("j", "k"):
        await lifecycle.request(training(job_id=job_id), world.deps)
    await reconcile(world.deps)
    offers = {world.compute.running[f"goblin-{job_id}-a1"].offer.offer_id for job_id in ("j", "k")}
    assert offers == {"s", "t"}


async def test_on_unknown_offers_nothing_is_launched_and_the_reason_is_told() -> None:
    world = market()

    class Mute(MemoryCompute):
        name = "mute"
        kinds = frozenset({"training"})

        async def rent(self, order: Any) -> str:
            raise ProviderUnavailable("it was never asked for")

    mute = Mute()
    mute.unknown = "410 Gone"
    world.deps = replace(world.deps, compute={"mute": mute})
    await requested(world)
    assert world.job().state is JobState.QUEUED
    assert world.job().no_placement is not None
    assert "mute did not answer: 410 Gone" in world.job().no_placement.reason


async def test_each_change_of_state_is_announced_once_and_in_order() -> None:
    world = market()
    await requested(world, callback_topic="my-app")
    await worker_api.claim("j", world.token(), world.deps)
    ours = [event for topic, event in world.bus.told if topic == "job-status-changed"]
    assert [event.state for event in ours] == ["queued", "placing", "starting", "running"]
    assert [event.seq for event in ours] == [1, 2, 3, 4]
    assert [event for topic, event in world.bus.told if topic == "my-app"] == ours


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (TopicForbidden("a grant is missing"), "the callback topic my-app may not be published to"),
        (UnknownTopic("there is none"), "the callback topic my-app does not exist"),
    ],
)
async def test_a_callback_topic_that_refuses_is_noted_once_and_the_state_is_announced_once(
    error: UnknownTopic, reason: str
) -> None:
    """Before, a missing grant looked like an outage, and the status was published again each minute."""
    world = market()
    publish = world.bus.publish

    async def refusing(topic: str, event: Any) -> None:
        if topic == "my-app":
            raise error
        await publish(topic, event)

    world.bus.publish = refusing  # type: ignore[method-assign]
    await requested(world, callback_topic="my-app")
    await worker_api.claim("j", world.token(), world.deps)
    for _ in range(3):
        world.clock.at += timedelta(seconds=60)
        await worker_api.heartbeat("j", world.token(), 0, world.deps)
        await reconcile(world.deps)
    job = world.job()
    assert [event.state for topic, event in world.bus.told] == ["queued", "placing", "starting", "running"]
    assert job.announced_seq == job.seq
    assert [line.text for line in job.reasons].count(reason) == 1
    assert job.reason != reason


async def test_a_provider_whose_budget_is_used_up_keeps_no_job_from_another_that_has_money() -> None:
    world = market(SPOT)
    other = MemoryCompute(world.faults)
    other.name, other.kinds = "other", world.compute.kinds  # type: ignore[misc]
    other.listing = Listing(offers=(replace(ON_DEMAND, provider="other", machine_id="m2"),))
    deps = replace(world.deps, compute={"fake": world.compute, "other": other})
    month = (Limit(period=Period.MONTH, limit_usd_micros=1_000),)
    world.ledger.declared = {**world.ledger.declared, "fake": month}
    await lifecycle.request(training(), deps)
    await reconcile(deps)
    assert [*other.running] == [world.job().lease.label if world.job().lease else ""], world.job().reason
    assert world.job().state is JobState.STARTING


async def test_who_waits_for_a_budget_is_not_asked_for_again_by_every_job_in_every_run() -> None:
    world = market(SPOT)
    world.ledger.declared = {**world.ledger.declared, "fake": (Limit(period=Period.MONTH, limit_usd_micros=1_000),)}
    for job_id in ("a", "b", "c"):
        await lifecycle.request(training(job_id=job_id), world.deps)
    await reconcile(world.deps)
    assert sum(world.job(job_id).attempt for job_id in ("a", "b", "c")) == 1
    waiting = [world.job(job_id).no_placement for job_id in ("b", "c")]
    assert all(why is not None and "the month budget of fake" in why.reason for why in waiting), waiting


async def test_a_job_that_was_refused_money_once_waits_without_an_attempt_until_there_is_some() -> None:
    world = market(SPOT)
    world.ledger.declared = {**world.ledger.declared, "fake": (Limit(period=Period.MONTH, limit_usd_micros=1_000),)}
    await requested(world)
    for _ in range(60):
        await tick(world)
    job = world.job()
    assert (job.state, job.attempt) == (JobState.QUEUED, 1)
    assert job.no_placement is not None
    assert "the month budget of fake" in job.no_placement.reason
    assert len(world.bus.told) < 10
    world.ledger.declared = {**world.ledger.declared, "fake": (Limit(period=Period.MONTH, limit_usd_micros=10**7),)}
    await tick(world)
    assert world.job().state is JobState.STARTING
