"""What a job comes to, by tables of what it has cost, runs on and has left."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from goblin.core.events import JobRequested
from goblin.jobs.domain.instances import AttemptLease
from goblin.jobs.domain.job import InstanceReservation, Job, JobState, Progress
from goblin.jobs.domain.market import Candidate, ExpectedRun, Offer, Placement
from goblin.jobs.policy.cost_forecast import forecast

NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)
DOLLAR = 1_000_000


def rent(
    hours: float, *, price: int = 360_000, ended: float | None = None, reserved: int = DOLLAR
) -> InstanceReservation:
    """An instance that was rented so many hours ago."""
    since = NOW - timedelta(hours=hours)
    return InstanceReservation(
        label="goblin-j-a1", provider="vastai", spot=True, price_usd_micros_per_hour=price, start_usd_micros=500,
        since=since, until=NOW + timedelta(hours=1), reserved_usd_micros=reserved,
        ended_at=None if ended is None else since + timedelta(hours=ended),
    )  # fmt: skip


def progress(speed: float | None) -> Progress:
    return Progress(at=NOW, step=0, steps_per_s=speed)


def placement(all_in: int | None) -> Placement:
    offer = Offer(offer_id="o", provider="vastai", pool="p", spot=True, price_usd_micros_per_hour=1, gpu_memory_mib=1)
    run = ExpectedRun(price_usd_micros_per_hour=300_000, cost_usd_micros=1, duration_s=1, interval_s=1, losses=0)
    candidates = (
        Candidate(offer_id="other", provider="vastai", spot=True, all_in_usd_micros_per_hour=7),
        Candidate(offer_id="o", provider="vastai", spot=False, all_in_usd_micros_per_hour=8),
        Candidate(offer_id="o", provider="vastai", spot=True, all_in_usd_micros_per_hour=all_in),
    )
    return Placement(offer=offer, bid_usd_micros_per_hour=300_000, run=run, reason="cheapest", candidates=candidates)


LEASE = AttemptLease(provider="vastai", label="goblin-j-a1", token_sha256="0" * 64, placed_at=NOW, until=NOW)


def job(**changes: Any) -> Job:
    fields: dict[str, Any] = {
        "job_id": "j", "spec": JobRequested(job_id="j", kind="training"), "spec_sha256": "", "state": JobState.RUNNING,
        "requested_at": NOW, "updated_at": NOW, "attempt": 1, "lease": LEASE, "told_total": 1000, "step": 100,
    }  # fmt: skip
    return Job(**{**fields, **changes})


@pytest.mark.parametrize(
    ("reservations", "spent"),
    [
        ((), 40),
        ((rent(0),), 40 + 500),
        ((rent(0.5),), 40 + 500 + 180_000),
        ((rent(3, ended=0.25),), 40 + 500 + 90_000),
        ((rent(3, ended=0.25), rent(0.5)), 40 + 1000 + 270_000),
        ((rent(-1),), 40 + 500),
        ((rent(5, reserved=200_000),), 40 + 200_000),
        ((rent(1 / 3600, price=1),), 40 + 501),
    ],
    ids=["none", "began now", "half an hour", "ended", "two", "clock behind", "no more than put aside", "rounded up"],
)
def test_what_is_spent_is_what_was_settled_and_what_runs(
    reservations: tuple[InstanceReservation, ...], spent: int
) -> None:
    assert forecast(job(spent_usd_micros=40, reservations=reservations), now=NOW).spent_usd_micros == spent


@pytest.mark.parametrize(
    ("facts", "left_s", "more"),
    [
        ({"progress": progress(0.25)}, 3600, 360_000),
        ({"progress": progress(0.5), "step": 1000}, 0, 0),
        ({"progress": progress(0.5), "step": 1200}, 0, 0),
        ({"progress": progress(0.25), "told_total": None}, None, None),
        ({"progress": progress(None)}, None, None),
        ({"progress": progress(0.0)}, None, None),
        ({"progress": progress(-1.0)}, None, None),
        ({"progress": progress(float("nan"))}, None, None),
        ({"progress": progress(1e-300)}, None, None),
        ({"progress": progress(float("inf"))}, 0, 0),
        ({}, None, None),
    ],
    ids=["half way", "done", "beyond", "no total", "no speed", "stands", "negative", "nan", "forever", "inf", "silent"],
)
def test_the_end_is_the_price_over_the_time_left(facts: Any, left_s: float | None, more: int | None) -> None:
    found = forecast(job(reservations=(rent(0),), **facts), now=NOW)
    assert found.left_s == left_s
    assert found.at_end_usd_micros == (None if more is None else found.spent_usd_micros + more)


@pytest.mark.parametrize(
    ("facts", "price"),
    [
        ({"reservations": (rent(1),), "placement": placement(310_000)}, 360_000),
        ({"reservations": (rent(1, ended=0.5),), "placement": placement(310_000)}, 310_000),
        ({"placement": placement(None)}, 300_000),
        ({}, 0),
    ],
    ids=["runs", "ran on", "ran on, not all in", "never ran"],
)
def test_a_waiting_job_goes_on_at_the_price_it_had_last(facts: Any, price: int) -> None:
    found = forecast(job(state=JobState.QUEUED, progress=progress(0.25), **facts), now=NOW)
    assert found.price_usd_micros_per_hour == price
    assert found.at_end_usd_micros == found.spent_usd_micros + price


def test_what_costs_nothing_comes_to_nothing_however_long_it_takes() -> None:
    assert forecast(job(told_total=None), now=NOW).at_end_usd_micros == 0


def test_nobody_knows_what_a_job_comes_to_that_was_never_placed() -> None:
    assert forecast(job(state=JobState.QUEUED, lease=None), now=NOW).at_end_usd_micros is None


def test_an_ended_job_comes_to_what_it_cost() -> None:
    found = forecast(job(state=JobState.FAILED, spent_usd_micros=5, reservations=(rent(1, ended=1),)), now=NOW)
    assert (found.left_s, found.at_end_usd_micros) == (0, 5 + 500 + 360_000)
