"""Money for instances over a ledger whose answers get lost and whose writers die."""

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, TypeVar

import pytest

from goblin.billing.budget_client import BudgetClient
from goblin.billing.domain.accounts import Limit, Period
from goblin.billing.domain.ledger import BudgetAction, EntryKind, LedgerEntry
from goblin.billing.policy.allocation import InsufficientBudget, ThresholdEvent
from goblin.core.errors import StoreUnavailable
from goblin.core.events import JobRequested
from goblin.jobs import reservations
from goblin.jobs.domain.job import InstanceReservation, Job, JobState
from goblin.jobs.policy import reservations as reservation_policy
from goblin.jobs.reservations import Renewal
from tests.fakes.jobs import FakeClock
from tests.fakes.ledger import MemoryLedger

NOON = datetime(2026, 11, 25, 12, tzinfo=UTC)
MIDNIGHT = datetime(2026, 11, 26, tzinfo=UTC)
HOURLY = 3_600_000
"""A thousand millionths a second."""
SECOND = 1000
LIFETIME = Period.LIFETIME
T = TypeVar("T")
PLENTY = Limit(period=Period.MONTH, limit_usd_micros=1_000_000_000)


def seconds(s: float) -> timedelta:
    return timedelta(seconds=s)


def plan(since: datetime = NOON, label: str = "goblin-j-a1") -> InstanceReservation:
    return InstanceReservation(
        label=label, provider="vastai", spot=True, price_usd_micros_per_hour=HOURLY, start_usd_micros=0,
        since=since, until=since + seconds(4020), reserved_usd_micros=0, shortest_s=720,
    )  # fmt: skip


@dataclass
class World:
    ledger: MemoryLedger = field(default_factory=lambda: MemoryLedger(declared={"total": (PLENTY,)}))
    told: list[ThresholdEvent] = field(default_factory=list)

    def limit(self, account: str, micros: int, period: Period = LIFETIME) -> None:
        self.ledger.declared = {**self.ledger.declared, account: (Limit(period=period, limit_usd_micros=micros),)}

    @property
    def deps(self) -> reservations.ReservationDeps:
        async def announce(threshold_event: ThresholdEvent) -> None:
            self.told.append(threshold_event)

        client = BudgetClient(self.ledger, self.ledger, FakeClock(), announce=announce)
        return reservations.ReservationDeps(budget_client=client, ledger=self.ledger)

    def reserve(
        self, one: InstanceReservation, now: datetime | None = None
    ) -> InstanceReservation | InsufficientBudget:
        return run(reservations.reserve(one, self.deps, now=now or one.since))

    def rent(self, one: InstanceReservation | None = None) -> InstanceReservation:
        found = self.reserve(one or plan())
        assert isinstance(found, InstanceReservation)
        return found

    def keep(self, one: InstanceReservation, now: datetime, halt: str = "") -> Renewal:
        return run(reservations.renew(one, self.deps, now=now, halt=halt))

    def settle(self, one: InstanceReservation, at: datetime) -> int:
        return run(reservations.settle(reservation_policy.ended(one, at), self.deps, now=at))

    def held(self, account: str, period: Period = LIFETIME) -> tuple[int, int]:
        usage = self.ledger.kept[account].usages[period]
        return usage.spent_usd_micros, usage.allocated_usd_micros


def run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


@pytest.fixture
def world() -> World:
    return World()


def test_a_slice_is_put_aside_in_every_budget_above_and_in_the_jobs(world: World) -> None:
    reservation = world.rent()
    assert (reservation.reserved_usd_micros, reservation.until) == (4020 * SECOND, NOON + seconds(4020))
    for account in ("total", "vastai", "vastai/j", "job/j"):
        assert world.held(account) == (0, 4020 * SECOND)


@pytest.mark.parametrize(("limit_s", "lasts_s"), [(4019, 2220), (2220, 2220), (1000, 870), (720, 720)])
def test_near_the_end_of_a_budget_the_slice_is_shorter(world: World, limit_s: int, lasts_s: int) -> None:
    world.limit("job/j", limit_s * SECOND)
    reservation = world.rent()
    assert reservation.until - reservation.since == seconds(lasts_s)
    assert world.held("job/j") == (0, lasts_s * SECOND)


def test_what_does_not_cover_a_slice_worth_a_start_lends_nothing(world: World) -> None:
    world.limit("job/j", 719 * SECOND)
    found = world.reserve(plan())
    assert isinstance(found, InsufficientBudget)
    assert (found.account, found.left_usd_micros) == ("job/j", 719 * SECOND)
    assert world.held("total") == (0, 0)
    assert world.ledger.lent == {}


def test_without_the_ledger_nothing_is_rented(world: World) -> None:
    world.ledger.down = True
    with pytest.raises(StoreUnavailable):
        world.reserve(plan())


def test_a_rent_is_left_alone_until_it_is_time(world: World) -> None:
    reservation = world.rent()
    before = world.ledger.exchanges
    assert world.keep(reservation, NOON + seconds(3299)) == Renewal(reservations=(reservation,))
    assert world.ledger.exchanges == before


def test_a_renewal_prolongs_what_is_paid(world: World) -> None:
    reservation = world.rent()
    kept = world.keep(reservation, NOON + seconds(3300)).current
    assert (kept.until, kept.reserved_usd_micros) == (reservation.until + seconds(3600), 7620 * SECOND)
    assert world.held("job/j") == (0, 7620 * SECOND)


def test_a_renewal_that_no_budget_covers_is_refused_and_what_is_paid_stays(world: World) -> None:
    world.limit("vastai", 4_100 * SECOND, Period.MONTH)
    world.limit("job/j", 10_000 * SECOND)
    reservation = world.rent()
    for _ in range(3):  # At each tick anew.
        kept = world.keep(reservation, NOON + seconds(3400))
        assert kept.reservations == (reservation,)
        assert "month budget of vastai" in kept.refused
        assert not kept.ends_job
    assert world.held("vastai") == (0, 4020 * SECOND)


def test_a_jobs_own_budget_that_is_used_up_ends_it(world: World) -> None:
    world.limit("job/j", 4_100 * SECOND)
    kept = world.keep(world.rent(), NOON + seconds(3400))
    assert kept.refused
    assert kept.ends_job


def test_after_a_refusal_a_budget_that_grew_prolongs_again(world: World) -> None:
    world.limit("job/j", 4_100 * SECOND)
    reservation = world.rent()
    assert world.keep(reservation, NOON + seconds(3400)).refused
    world.limit("job/j", 5_000 * SECOND)
    kept = world.keep(reservation, NOON + seconds(3460))
    assert not kept.refused
    assert kept.current.until == reservation.until + seconds(900)


def test_nothing_is_lent_to_what_is_frozen(world: World) -> None:
    reservation = world.rent()
    before = world.ledger.exchanges
    assert world.keep(reservation, NOON + seconds(100), halt="frozen") == Renewal(reservations=(reservation,))
    assert world.keep(reservation, NOON + seconds(3400), halt="frozen") == Renewal(
        reservations=(reservation,), refused="frozen"
    )
    assert world.ledger.exchanges == before


def test_what_was_not_used_comes_back_and_the_rest_is_spent(world: World) -> None:
    reservation = world.rent()
    assert world.settle(reservation, NOON + seconds(1000)) == 1000 * SECOND
    for account in ("total", "vastai", "vastai/j", "job/j"):
        assert world.held(account) == (1000 * SECOND, 0)
    assert world.ledger.lent == {}
    assert [entry.entry_id for entry in world.ledger.settled()] == ["rent:goblin-j-a1:1:settled"]


def test_a_settlement_twice_is_one(world: World) -> None:
    reservation = world.rent()
    for _ in range(3):
        assert world.settle(reservation, NOON + seconds(1000)) == 1000 * SECOND
    assert world.held("job/j") == (1000 * SECOND, 0)


def test_a_plan_that_was_never_answered_gives_back_what_was_lent_for_it(world: World) -> None:
    world.ledger.lose_answers = 1
    with pytest.raises(StoreUnavailable):
        world.reserve(plan())
    assert world.held("job/j") == (0, 4020 * SECOND)
    assert world.settle(plan(), NOON + seconds(600)) == 0
    assert world.held("job/j") == (0, 0)
    assert world.ledger.settled() == []


def test_an_instance_that_the_provider_refused_costs_nothing(world: World) -> None:
    assert world.settle(world.rent(), NOON) == 0
    assert world.held("job/j") == (0, 0)


def test_a_lost_answer_to_a_reservation_is_made_up_for(world: World) -> None:
    world.ledger.lose_answers = 1
    with pytest.raises(StoreUnavailable):
        world.reserve(plan())
    reservation = world.rent()
    assert (reservation.until, world.held("job/j")) == (NOON + seconds(4020), (0, 4020 * SECOND))


def test_a_renewal_that_was_never_written_down_is_not_made_twice(world: World) -> None:
    reservation = world.rent()
    world.keep(reservation, NOON + seconds(3300))  # And whoever asked died.
    kept = world.keep(reservation, NOON + seconds(3360)).current
    assert kept.until == reservation.until + seconds(3600)
    assert world.held("job/j") == (0, 7620 * SECOND)
    assert world.settle(kept, NOON + seconds(5000)) == 5000 * SECOND
    assert world.held("job/j") == (5000 * SECOND, 0)


def test_a_shorter_renewal_that_was_never_written_down_says_until_when_it_pays(world: World) -> None:
    world.limit("job/j", 5_000 * SECOND)
    reservation = world.rent()
    first = world.keep(reservation, NOON + seconds(3300)).current
    again = world.keep(reservation, NOON + seconds(3360)).current
    assert first.until == again.until == reservation.until + seconds(900)
    assert again.reserved_usd_micros == 4920 * SECOND


def test_a_new_day_takes_the_rent_over_and_yesterday_is_settled_by_itself(world: World) -> None:
    since = MIDNIGHT - seconds(1800)
    reservation = world.rent(plan(since))
    world.limit("vastai", 10_000 * SECOND, Period.DAY)
    now = MIDNIGHT + seconds(30)
    yesterday, today = world.keep(reservation, now).reservations
    assert (yesterday.ended_at, today.since, today.until) == (MIDNIGHT, MIDNIGHT, reservation.until)
    assert world.settle(yesterday, now) == 1800 * SECOND
    assert world.settle(today, MIDNIGHT + seconds(100)) == 100 * SECOND
    assert world.held("job/j") == (1900 * SECOND, 0)
    assert world.held("vastai", Period.DAY) == (100 * SECOND, 0)
    spent = {b.account: b.spent_usd_micros for b in run(world.ledger.balances("2026-11-25"))}
    assert spent["vastai/j"] == 1800 * SECOND


def test_a_new_day_without_money_leaves_what_yesterday_paid(world: World) -> None:
    reservation = world.rent(plan(MIDNIGHT - seconds(1800)))
    world.limit("vastai", 100 * SECOND, Period.DAY)
    kept = world.keep(reservation, MIDNIGHT + seconds(30))
    assert kept.reservations == (reservation,)
    assert "day budget of vastai" in kept.refused
    assert world.settle(reservation, reservation.until) == 4020 * SECOND
    days = [run(world.ledger.balances(day))[0].spent_usd_micros for day in ("2026-11-25", "2026-11-26")]
    assert days == [1800 * SECOND, 2220 * SECOND]  # As the provider bills it; the limit was yesterday's.
    assert world.held("vastai", Period.DAY) == (0, 0)


def test_a_new_days_part_that_was_never_written_down_is_given_back_with_the_other(world: World) -> None:
    reservation = world.rent(plan(MIDNIGHT - seconds(1800)))
    world.keep(reservation, MIDNIGHT + seconds(30))  # And whoever asked died.
    assert world.settle(reservation, MIDNIGHT + seconds(60)) == 1860 * SECOND
    assert world.held("job/j") == (1860 * SECOND, 0)
    assert world.ledger.lent == {}


def test_a_rent_whose_time_is_over_counts_as_spent_until_its_end_is_written(world: World) -> None:
    reservation = world.rent()
    late = reservation.until + reservation_policy.EXPIRES_AFTER
    assert not run(world.ledger.expire("rent:goblin-j-a1:1", now=late - seconds(1))).writes
    assert run(world.ledger.expire("rent:goblin-j-a1:1", now=late)).writes
    assert world.held("job/j") == (4020 * SECOND, 0)
    assert world.settle(reservation, NOON + seconds(900)) == 900 * SECOND
    assert world.held("job/j") == (900 * SECOND, 0)
    assert world.ledger.lent == {}


def test_an_end_that_comes_after_the_bill_was_read_adds_nothing_to_it(world: World) -> None:
    reservation = world.rent()
    run(world.ledger.expire("rent:goblin-j-a1:1", now=NOON + seconds(10_000)))
    run(world.ledger.resolve("rent:goblin-j-a1:1", spent_usd_micros=890_000, now=NOON + seconds(10_000)))
    assert world.settle(reservation, NOON + seconds(900)) == 900 * SECOND
    assert world.held("job/j") == (890_000, 0)


def test_a_rent_that_another_has_ended_is_not_prolonged(world: World) -> None:
    reservation = world.rent()
    world.settle(reservation, NOON + seconds(3000))
    with pytest.raises(StoreUnavailable):
        world.keep(reservation, NOON + seconds(3400))
    assert world.held("job/j") == (3000 * SECOND, 0)


@pytest.mark.parametrize("lost", range(1, 6))
def test_a_settlement_cut_anywhere_and_repeated_is_one(world: World, lost: int) -> None:
    reservation = world.rent(plan(MIDNIGHT - seconds(1800)))
    world.keep(reservation, MIDNIGHT + seconds(30))
    world.ledger.lose_answers = lost
    for _ in range(lost + 1):
        try:
            assert world.settle(reservation, MIDNIGHT + seconds(60)) == 1860 * SECOND
        except StoreUnavailable:
            continue
    assert world.held("job/j") == (1860 * SECOND, 0)
    assert world.ledger.lent == {}


def test_thresholds_are_told_of_and_who_cannot_be_told_holds_up_nothing(world: World) -> None:
    world.limit("job/j", 4020 * SECOND)
    reservation = world.rent()
    assert world.settle(reservation, NOON + seconds(3900)) == 3900 * SECOND
    assert [(c.account, c.percent) for c in world.told] == [("job/j", 95)]

    async def deaf(threshold_event: ThresholdEvent) -> None:
        raise StoreUnavailable("deaf")

    other = replace(plan(label="goblin-k-a1"))
    world.limit("job/k", 4020 * SECOND)
    client = BudgetClient(world.ledger, world.ledger, FakeClock(), announce=deaf)
    deps = replace(world.deps, budget_client=client)
    found = run(reservations.reserve(other, deps, now=NOON))
    assert isinstance(found, InstanceReservation)
    ended = reservation_policy.ended(found, NOON + seconds(3900))
    assert run(reservations.settle(ended, deps, now=NOON + seconds(3900))) == 3900 * SECOND


def job(budget: str | None) -> Job:
    spec = JobRequested(job_id="j", kind="training", budget_usd=Decimal(budget) if budget else None)
    return Job(job_id="j", spec=spec, spec_sha256="", state=JobState.QUEUED, requested_at=NOON, updated_at=NOON)


def test_a_jobs_budget_is_set_when_it_is_accepted_and_dropped_when_it_is_over(world: World) -> None:
    for one in (job("0.004"), job("0.004"), job(None)):
        run(reservations.limit_job(one, world.ledger))
    assert world.ledger.kept["job/j"].limits == (Limit(period=LIFETIME, limit_usd_micros=4000),)
    assert isinstance(world.reserve(plan()), InsufficientBudget)
    for one in (job(None), job("0.004"), job("0.004")):
        run(reservations.unlimit_job(one, world.ledger))
    assert world.ledger.kept["job/j"].limits == ()


def test_what_is_frozen_is_read_with_its_reasons(world: World) -> None:
    run(
        world.ledger.record(
            LedgerEntry(
                entry_id="f", kind=EntryKind.FREEZE, account="vastai", amount_usd_micros=0, at=NOON, note="used up",
                reaction=BudgetAction.STOP_JOBS,
            )
        )
    )  # fmt: skip
    found = run(reservations.halt(world.ledger))
    assert found.starts == found.stops == {"vastai": "vastai is frozen: used up"}
    world.ledger.down = True
    with pytest.raises(StoreUnavailable):
        run(reservations.halt(world.ledger))
