"""How much is put aside for an instance, until when that pays, and what it comes to."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goblin.billing.domain.accounts import Limit, Period
from goblin.billing.domain.ledger import BudgetAction, Freeze
from goblin.billing.policy.allocation import InsufficientBudget
from goblin.core.events import JobRequested
from goblin.jobs.domain.job import InstanceReservation, Job, JobState
from goblin.jobs.domain.market import ExpectedRun, Offer, Placement
from goblin.jobs.policy import reservations
from goblin.jobs.policy.spot.offers import Needs

NOON = datetime(2026, 11, 25, 12, tzinfo=UTC)
MIDNIGHT = datetime(2026, 11, 26, tzinfo=UTC)
LABEL = "goblin-job-7-a1"


def seconds(s: float) -> timedelta:
    return timedelta(seconds=s)


def offer(**changes: Any) -> Offer:
    facts = {
        "offer_id": "1", "provider": "vastai", "pool": "p", "spot": True, "price_usd_micros_per_hour": 200_000,
        "gpu_memory_mib": 24_000,
    }  # fmt: skip
    return Offer(**{**facts, **changes})


def placement(one: Offer, bid: int | None = None, interval_s: float = 900.0) -> Placement:
    run = ExpectedRun(
        price_usd_micros_per_hour=bid or one.price_usd_micros_per_hour, cost_usd_micros=1, duration_s=1.0,
        interval_s=interval_s, losses=0.0,
    )  # fmt: skip
    return Placement(offer=one, bid_usd_micros_per_hour=bid, run=run, reason="", candidates=())


def first(one: Offer, *, bid: int | None = None, start_s_max: float = 300, **needs: Any) -> InstanceReservation | None:
    wanted = Needs(**{"work_s": 8 * 3600.0, **needs})
    return reservations.first(LABEL, placement(one, bid), wanted, start_s_max=start_s_max, now=NOON)


def rent(**changes: Any) -> InstanceReservation:
    facts = {
        "label": LABEL, "provider": "vastai", "spot": True, "price_usd_micros_per_hour": 360_000,
        "start_usd_micros": 5_000, "since": NOON, "until": NOON + seconds(3600), "reserved_usd_micros": 365_000,
        "seq": 1, "shortest_s": 720,
    }  # fmt: skip
    return InstanceReservation(**{**facts, **changes})


def test_a_first_slice_pays_for_the_start_an_hour_of_work_and_two_ticks_of_idle_tail() -> None:
    plan = first(offer())
    assert plan is not None
    assert plan.until - plan.since == seconds(300 + 3600 + 120)
    assert reservations.worst_usd_micros(plan) == -(-200_000 * 4020 // 3600)
    assert (plan.reserved_usd_micros, plan.seq, plan.shortest_s) == (0, 0, 300 + 300 + 120)


def test_the_price_is_the_bid_with_the_disk_and_the_traffic_of_saves() -> None:
    one = offer(storage_usd_micros_per_gib_month=72_000, upload_usd_micros_per_gib=10_000)
    plan = first(one, bid=310_000, disk_gib=50, checkpoint_gib=0.5, save_s=10)
    assert plan is not None
    # 50 GiB at 100 an hour each; a save of half a GiB each 900 seconds.
    assert plan.price_usd_micros_per_hour == 310_000 + 50 * 100 + 4 * 5_000


def test_the_start_pays_for_all_that_is_downloaded_and_for_the_last_save() -> None:
    one = offer(download_usd_micros_per_gib=20_000, upload_usd_micros_per_gib=10_000)
    plan = first(one, download_gib=4.25, checkpoint_gib=0.5)
    assert plan is not None
    assert plan.start_usd_micros == 4.75 * 20_000 + 5_000


def test_what_is_free_is_not_rented() -> None:
    assert first(offer(provider="local", price_usd_micros_per_hour=0, spot=False)) is None


def test_traffic_that_costs_something_is_not_free() -> None:
    plan = first(offer(price_usd_micros_per_hour=0, download_usd_micros_per_gib=1000), download_gib=1)
    assert plan is not None
    assert reservations.worst_usd_micros(plan) >= 1000


@pytest.mark.parametrize(("work_s", "sliced_s"), [(8 * 3600, 3600), (1800, 1800), (10, 300)])
def test_a_slice_is_no_longer_than_the_work_that_is_left(work_s: float, sliced_s: int) -> None:
    plan = first(offer(), work_s=work_s)
    assert plan is not None
    assert plan.until - plan.since == seconds(300 + sliced_s + 120)


def test_slices_are_halved_down_to_what_is_worth_a_start() -> None:
    plan = first(offer())
    assert plan is not None
    work = [int((one.until - one.since).total_seconds()) - 420 for one in reservations.slices(plan)]
    assert work == [3600, 1800, 900, 450, 300]


def test_the_longest_slice_that_fits_is_taken() -> None:
    plan = first(offer())
    assert plan is not None
    wishes = reservations.slices(plan)
    for left, index in ((10**9, 0), (reservations.worst_usd_micros(wishes[0]) - 1, 1), (60_000, 3)):
        assert reservations.fitting(wishes, paid_usd_micros=0, left_usd_micros=left) == wishes[index]
    least = reservations.worst_usd_micros(wishes[-1])
    assert reservations.fitting(wishes, paid_usd_micros=0, left_usd_micros=least - 1) is None


@pytest.mark.parametrize(
    ("now", "due"),
    [
        (NOON, False),
        (NOON + seconds(3600 - 120 - 601), False),
        (NOON + seconds(3600 - 120 - 600), True),
        (NOON + seconds(3599), True),
        (NOON + seconds(3600), False),
    ],
)
def test_a_rent_is_prolonged_when_ten_minutes_are_paid_and_not_once_it_is_over(now: datetime, due: bool) -> None:
    assert bool(reservations.renewals(rent(), now)) is due


def test_a_renewal_reaches_from_the_end_of_what_is_paid() -> None:
    found = reservations.renewals(rent(), NOON + seconds(3000))
    assert [(one.until - rent().until).total_seconds() for one in found] == [3600, 1800, 900, 450, 300]


@pytest.mark.parametrize("changes", [{"ended_at": NOON + seconds(9)}, {"reserved_usd_micros": 0}])
def test_what_has_ended_and_what_is_only_planned_is_not_prolonged(changes: dict[str, Any]) -> None:
    assert not reservations.renewals(rent(**changes), NOON + seconds(3500))
    assert not reservations.turns(rent(**changes, until=MIDNIGHT + seconds(3600)), MIDNIGHT)


def test_the_new_day_takes_a_rent_over_at_midnight() -> None:
    old = rent(since=MIDNIGHT - seconds(1800), until=MIDNIGHT + seconds(1800))
    assert not reservations.turns(old, MIDNIGHT - seconds(1))
    longest, *_, shortest = reservations.turns(old, MIDNIGHT + seconds(40))
    assert (longest.since, longest.part, longest.start_usd_micros, longest.seq) == (MIDNIGHT, 2, 0, 0)
    assert longest.until == old.until
    assert shortest.until == MIDNIGHT + seconds(40 + 120 + 300)
    assert reservations.allocation_id(longest) != reservations.allocation_id(old)


def test_a_rent_that_is_due_is_taken_over_and_prolonged_at_once() -> None:
    old = rent(since=MIDNIGHT - seconds(3000), until=MIDNIGHT + seconds(600))
    assert reservations.turns(old, MIDNIGHT + seconds(30))[0].until == old.until + seconds(3600)


@given(
    hourly=st.integers(1, 40_000_000), start=st.integers(0, 3_000_000), granted=st.integers(1, 200_000_000),
)  # fmt: skip
def test_what_is_put_aside_pays_to_the_very_end_of_it(hourly: int, start: int, granted: int) -> None:
    paid = reservations.granted(rent(price_usd_micros_per_hour=hourly, start_usd_micros=start), granted, 3)
    if granted >= start:
        assert reservations.worst_usd_micros(paid) <= granted
    assert paid.until >= paid.since
    assert paid.seq == 3


@given(hourly=st.integers(1, 40_000_000), start=st.integers(0, 10**6), lived_s=st.floats(0, 10_000))
def test_an_instance_that_ends_in_time_costs_no_more_than_was_put_aside(
    hourly: int, start: int, lived_s: float
) -> None:
    plan = rent(price_usd_micros_per_hour=hourly, start_usd_micros=start, until=NOON + seconds(10_000))
    paid = reservations.granted(plan, reservations.worst_usd_micros(plan), 1)
    ended = reservations.ended(paid, NOON + seconds(lived_s))
    assert paid.until == plan.until
    assert hourly * lived_s / 3600 - 1 <= reservations.cost_usd_micros(ended) <= paid.reserved_usd_micros


def test_an_end_that_was_noticed_late_costs_what_was_put_aside() -> None:
    ended = reservations.ended(rent(), NOON + seconds(9000))
    assert reservations.cost_usd_micros(ended) == 365_000
    over_midnight = reservations.ended(rent(since=MIDNIGHT - seconds(3600), until=MIDNIGHT), MIDNIGHT + seconds(900))
    assert [entry.amount_usd_micros for entry in reservations.settlement(over_midnight)] == [365_000]


@pytest.mark.parametrize("reserved", [0, 365_000])
def test_what_was_never_rented_costs_nothing(reserved: int) -> None:
    ended_at = NOON if reserved else NOON + seconds(500)
    ended = reservations.ended(rent(reserved_usd_micros=reserved), ended_at)
    assert reservations.cost_usd_micros(ended) == 0
    assert reservations.settlement(ended) == ()


def test_no_cost_is_guessed_while_nobody_knows_the_end() -> None:
    with pytest.raises(ValueError, match="not known"):
        reservations.cost_usd_micros(rent())


@pytest.mark.parametrize(
    ("changes", "after_s", "comes"),
    [
        ({}, 299, True),
        ({}, 300, False),
        ({"instance_id": "i"}, 10, False),
        ({"ended_at": NOON}, 10, False),
        ({"reserved_usd_micros": 0}, 10, True),
    ],
)
def test_an_instance_that_was_never_seen_may_still_come_for_a_while(
    changes: dict[str, Any], after_s: int, comes: bool
) -> None:
    assert reservations.may_come(rent(**changes), NOON + seconds(after_s)) is comes


def test_an_end_that_is_known_stays() -> None:
    ended = reservations.ended(rent(), NOON + seconds(60))
    assert reservations.ended(ended, NOON + seconds(90)) == ended
    assert reservations.ended(rent(), NOON - seconds(5)).ended_at == NOON


def test_a_rent_knows_its_instance_once_that_has_a_name() -> None:
    other = rent(label="goblin-job-7-a2")
    named = reservations.named((rent(), rent(part=2), other), LABEL, "i1")
    assert [one.instance_id for one in named] == ["i1", "i1", None]
    (entry,) = reservations.settlement(reservations.ended(named[0], NOON + seconds(9)))
    assert entry.instance_id == "i1"


def test_a_settlement_counts_at_the_provider_and_for_the_job() -> None:
    (entry,) = reservations.settlement(reservations.ended(rent(), NOON + seconds(600)))
    assert entry.entry_id == "rent:goblin-job-7-a1:1:settled"
    assert entry.accounts == ("total", "vastai", "vastai/job-7", "job/job-7")
    assert entry.amount_usd_micros == 60_000 + 5_000
    assert (entry,) == reservations.settlement(reservations.ended(rent(seq=9), NOON + seconds(600)))


def test_what_ran_over_midnight_in_one_part_is_settled_day_by_day() -> None:
    old = rent(since=MIDNIGHT - seconds(600), until=MIDNIGHT + seconds(900))
    first, second = reservations.settlement(reservations.ended(old, MIDNIGHT + seconds(300)))
    assert (first.amount_usd_micros, f"{first.at:%d}") == (60_000 + 5_000, "25")
    assert (second.amount_usd_micros, f"{second.at:%d}") == (30_000, "26")
    assert first.entry_id != second.entry_id
    assert len(reservations.settlement(reservations.ended(old, MIDNIGHT))) == 1


def test_there_is_time_to_save_between_the_last_call_and_the_release() -> None:
    assert reservations.leave_at(rent()) == NOON + seconds(3480)
    assert reservations.last_call(rent(), save_s=1) == NOON + seconds(3300)
    assert reservations.last_call(rent(), save_s=200) == NOON + seconds(3480 - 490)


def job(budget: str | None) -> Job:
    spec = JobRequested(job_id="job-7", kind="training", budget_usd=Decimal(budget) if budget else None)
    return Job(job_id="job-7", spec=spec, spec_sha256="", state=JobState.QUEUED, requested_at=NOON, updated_at=NOON)


@pytest.mark.parametrize(("budget", "micros"), [("5", 5_000_000), ("0.0000019", 1), ("0", 0)])
def test_a_jobs_budget_holds_for_its_whole_life_and_is_not_rounded_up(budget: str, micros: int) -> None:
    expected = Limit(period=Period.LIFETIME, limit_usd_micros=micros, action=BudgetAction.ALERT)
    assert reservations.limit_of(job(budget)) == ("job/job-7", expected)


def test_a_job_without_a_budget_has_no_limit() -> None:
    assert reservations.limit_of(job(None)) is None


def freeze(account: str, action: BudgetAction | None, reason: str = "spent") -> Freeze:
    return Freeze(entry_id="f", account=account, reason=reason, since=NOON, action=action)


@pytest.mark.parametrize(
    ("frozen", "starts", "stops"),
    [
        ([], False, False),
        ([freeze("total", None)], True, False),
        ([freeze("vastai", BudgetAction.FREEZE)], True, False),
        ([freeze("vastai", BudgetAction.STOP_JOBS)], True, True),
        ([freeze("vastai", BudgetAction.SCALE_TO_ZERO)], True, False),
        ([freeze("job/job-7", BudgetAction.STOP_JOBS)], True, True),
        ([freeze("total", BudgetAction.FREEZE), freeze("total", BudgetAction.STOP_JOBS)], True, True),
        ([freeze("runpod", BudgetAction.STOP_JOBS), freeze("job/job-8", None)], False, False),
    ],
)
def test_a_freeze_keeps_jobs_from_starting_and_may_stop_those_that_run(
    frozen: list[Freeze], starts: bool, stops: bool
) -> None:
    found, accounts = reservations.halt(frozen), reservations.accounts_of("vastai", "job-7")
    assert bool(reservations.why_halted(accounts, found.starts)) is starts
    assert bool(reservations.why_halted(accounts, found.stops)) is stops


def test_the_oldest_freeze_gives_the_reason() -> None:
    found = reservations.halt([freeze("total", None, "first"), freeze("total", None, "second")])
    assert reservations.why_halted(("total",), found.starts) == "total is frozen: first"


@pytest.mark.parametrize("resets_at", [None, MIDNIGHT])
def test_a_shortage_says_what_there_is_and_whether_waiting_helps(resets_at: datetime | None) -> None:
    short = InsufficientBudget(
        account="job/job-7", period=Period.LIFETIME, limit_usd_micros=5_000_000, left_usd_micros=10_000,
        need_usd_micros=20_000, resets_at=resets_at,
    )  # fmt: skip
    assert reservations.is_used_up(short) is (resets_at is None)
    assert "$5.00, has $0.01 left, but $0.02 are needed" in reservations.said(short)
    assert ("2026-11-26" in reservations.said(short)) is (resets_at is not None)


def test_a_shorter_first_slice_than_planned_keeps_what_makes_it_worth_a_start() -> None:
    plan = replace(rent(reserved_usd_micros=0), until=NOON + seconds(720))
    assert [one.until for one in reservations.slices(plan)] == [plan.until]


def test_a_rent_is_bounded_with_its_start_and_its_idle_tail() -> None:
    found = reservations.rent_bound_usd_micros(
        price_usd_micros_per_hour=440_001, seconds=3000, start_s_max=480, idle_s_max=120, disk_usd_micros=7,
        traffic_usd_micros=5,
    )  # fmt: skip
    assert found == 440_001 + 12
    assert reservations.rent_bound_usd_micros(price_usd_micros_per_hour=1, seconds=1, start_s_max=0, idle_s_max=0) == 1
