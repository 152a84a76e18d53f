"""Where a job runs next, or why it waits; whether the one that runs should move."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from goblin.core.events import JobRequested
from goblin.jobs.domain.checkpoints import Checkpoint
from goblin.jobs.domain.instances import AttemptLease, UnknownInventory
from goblin.jobs.domain.job import Job, JobState, Progress
from goblin.jobs.domain.market import Listing, NoPlacement, Offer, Placement
from goblin.jobs.policy import placement
from goblin.jobs.policy.placement import NotPromised, PlacementFacts, admit, move, place, work_left_s
from goblin.jobs.policy.spot.market_history import MarketHistory, PoolHistory
from goblin.jobs.policy.spot.preemption_rates import PreemptionRates

NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
SPOT = Offer(
    offer_id="s", provider="vastai", pool="vastai/RTX_4090", machine_id="m1", spot=True, gpu="RTX_4090",
    price_usd_micros_per_hour=120_000, on_demand_usd_micros_per_hour=400_000, gpu_memory_mib=24_000, reliability=0.99,
)  # fmt: skip
ON_DEMAND = replace(SPOT, offer_id="o", spot=False, price_usd_micros_per_hour=400_000)
POD = replace(ON_DEMAND, offer_id="p", provider="runpod", pool="runpod/RTX_4090", machine_id=None)
FREE = Offer(
    offer_id="process", provider="local", pool="local", spot=False, price_usd_micros_per_hour=0, gpu_count=0,
    gpu_memory_mib=0, reliability=1.0,
)  # fmt: skip


def job(**changes: Any) -> Job:
    spec = {"job_id": "j", "kind": "training", "gpu_types": ("RTX_4090",), "est_hours": 8.0}
    spec |= {name: changes.pop(name) for name in list(changes) if name in JobRequested.__struct_fields__}
    fields: dict[str, Any] = {
        "job_id": "j", "spec": JobRequested(**spec), "spec_sha256": "", "state": JobState.QUEUED, "requested_at": NOW,
        "updated_at": NOW,
    }  # fmt: skip
    return Job(**{**fields, **changes})


def facts(*offers: Offer, **changes: Any) -> PlacementFacts:
    providers = sorted({offer.provider for offer in offers} or {"vastai"})
    listings = {name: Listing(offers=tuple(offer for offer in offers if offer.provider == name)) for name in providers}
    return PlacementFacts(**{"listings": listings, "now": NOW, **changes})


def chosen(found: Placement | NoPlacement) -> str:
    assert isinstance(found, Placement), found.reason
    return found.offer.offer_id


def test_without_a_deadline_the_cheapest_to_finish_is_taken_and_the_others_are_told() -> None:
    found = place(job(), facts(ON_DEMAND, SPOT, POD))
    assert chosen(found) == "s"
    assert {candidate.offer_id: bool(candidate.rejected) for candidate in found.candidates} == {
        "s": False, "o": True, "p": True,
    }  # fmt: skip


def test_what_costs_nothing_is_taken_before_what_costs_little() -> None:
    assert chosen(place(job(), facts(SPOT, FREE))) == "process"


def test_the_price_cap_of_the_job_and_of_the_operator_both_hold() -> None:
    capped = place(job(max_price_per_hour=Decimal("0.11")), facts(SPOT, ON_DEMAND))
    assert isinstance(capped, NoPlacement)
    assert "above the cap of $0.11" in capped.reason
    barred = place(job(), facts(SPOT, POD, caps={"vastai": 100_000}))
    assert chosen(barred) == "p"
    assert "vastai's cap is $0.10" in barred.candidates[-1].rejected
    bid = place(job(), facts(SPOT, caps={"vastai": 130_000}))
    assert isinstance(bid, Placement)
    assert (bid.bid_usd_micros_per_hour or 0) <= 130_000


def test_a_frozen_provider_is_passed_over_with_the_reason_and_free_ones_are_not_concerned() -> None:
    assert chosen(place(job(), facts(SPOT, POD, halt={"vastai": "vastai is frozen"}))) == "p"
    halt = place(job(), facts(SPOT, halt={"vastai": "vastai is frozen"}))
    assert isinstance(halt, NoPlacement)
    assert "vastai is frozen" in halt.reason
    assert chosen(place(job(), facts(FREE, halt={"local": "total is frozen"}))) == "process"


def test_who_cannot_say_is_named_and_not_taken_for_empty() -> None:
    found = place(job(), facts(listings={}, unknown={"vastai": UnknownInventory(reason="410 Gone").reason}))
    assert isinstance(found, NoPlacement)
    assert "vastai did not answer: 410 Gone" in found.reason


def test_what_is_kept_of_the_candidates_is_bounded() -> None:
    many = [replace(SPOT, offer_id=f"s{n}", machine_id=f"m{n}") for n in range(200)]
    assert len(place(job(), facts(*many)).candidates) == placement.CANDIDATES_MAX


@pytest.mark.parametrize(
    ("hours", "offers", "expected"),
    [
        (40.0, (SPOT, ON_DEMAND), "s"),  # Room enough: the cheap one.
        (8.4, (SPOT, ON_DEMAND), "o"),  # One loss of the spot instance would be one too many.
        (9.0, (ON_DEMAND,), "o"),
        (40.0, (ON_DEMAND,), "o"),  # Spot was never seen: waiting for it would be a dream.
        (40.0, (SPOT, FREE), "process"),
        (40.0, (SPOT,), "s"),
        (-1.0, (SPOT, ON_DEMAND), "o"),  # Late already: as fast as possible.
    ],
)
def test_with_a_deadline_it_runs_where_it_cannot_be_missed(
    hours: float, offers: tuple[Offer, ...], expected: str
) -> None:
    found = place(job(deadline=NOW + hours * HOUR), facts(*offers))
    assert chosen(found) == expected
    assert {candidate.offer_id for candidate in found.candidates} == {offer.offer_id for offer in offers}
    assert [candidate.offer_id for candidate in found.candidates if not candidate.rejected] == [expected]


def test_spot_that_was_there_lately_is_waited_for_while_there_is_slack() -> None:
    pool = PoolHistory(
        provider="vastai", gpu="RTX_4090", gpu_count=1, seen_at=NOW, available_at=NOW - HOUR, rates=PreemptionRates()
    )
    known = MarketHistory(pools={"vastai/RTX_4090": pool})
    waits = place(job(deadline=NOW + 40 * HOUR), facts(ON_DEMAND, history=known))
    assert isinstance(waits, NoPlacement)
    assert "slack to wait" in waits.reason
    assert waits.candidates
    assert chosen(place(job(deadline=NOW + 8.9 * HOUR), facts(ON_DEMAND, history=known))) == "o"


def test_a_deadline_that_cannot_be_met_is_refused_at_once_with_the_nearest_that_can() -> None:
    denied = admit(job(deadline=NOW + 8 * HOUR), facts(SPOT, ON_DEMAND))
    assert isinstance(denied, NotPromised)
    assert denied.final
    assert "the nearest possible one is 2026-11-25T" in denied.reason
    assert "at $0.4" in denied.reason
    assert admit(job(deadline=NOW + 10 * HOUR), facts(SPOT, ON_DEMAND)) is None
    assert admit(job(), facts()) is None


def test_spot_alone_promises_no_deadline() -> None:
    denied = admit(job(deadline=NOW + 80 * HOUR), facts(SPOT))
    assert denied is not None
    assert "spot alone cannot promise" in denied.reason
    assert "the nearest" not in denied.reason, "no time would do"


def test_a_deadline_under_a_cap_or_a_budget_that_on_demand_exceeds_is_refused_with_the_price() -> None:
    capped = admit(job(deadline=NOW + 40 * HOUR, max_price_per_hour=Decimal("0.3")), facts(SPOT, ON_DEMAND))
    poor = admit(job(deadline=NOW + 40 * HOUR, budget_usd=Decimal(1)), facts(SPOT, ON_DEMAND))
    assert capped is not None
    assert poor is not None
    assert "cap of $0.30" in capped.reason
    assert "with a budget of $" in poor.reason


def test_a_provider_that_cannot_say_delays_a_refusal_but_not_for_ever() -> None:
    blind = facts(SPOT, unknown={"runpod": "timeout"})
    asked = job(deadline=NOW + 8 * HOUR)
    first, last = admit(asked, blind), admit(asked, replace(blind, now=NOW + placement.ADMITTED_WITHIN))
    assert first is not None
    assert last is not None
    assert (first.final, last.final) == (False, True)


def running(offer: Offer, **changes: Any) -> Job:
    waiting = job(**changes)
    placed = place(waiting, facts(offer))
    assert isinstance(placed, Placement)
    lease = AttemptLease(provider=offer.provider, label="goblin-j-a1", token_sha256="", placed_at=NOW, until=NOW + HOUR)
    return replace(waiting, state=JobState.RUNNING, attempt=1, lease=lease, placement=placed)


def test_spot_is_left_when_one_more_loss_would_cost_the_deadline_and_not_before() -> None:
    attempt = running(SPOT, deadline=NOW + 40 * HOUR)
    assert move(attempt, facts(SPOT, ON_DEMAND)) is None
    stop = move(attempt, facts(SPOT, ON_DEMAND, now=NOW + 31.7 * HOUR))
    assert stop is not None
    assert stop.reason.startswith("moves: ")
    assert stop.by > NOW + 31.7 * HOUR


def test_on_demand_is_left_only_for_spot_that_has_stayed() -> None:
    attempt = running(ON_DEMAND, deadline=NOW + 40 * HOUR)
    young, old = (
        MarketHistory(
            pools={
                SPOT.pool: PoolHistory(
                    provider="vastai", gpu="RTX_4090", gpu_count=1, seen_at=NOW, rates=PreemptionRates(age_s=s)
                )
            }
        )
        for s in (60.0, 24 * 3600.0)
    )
    assert move(attempt, facts(SPOT, ON_DEMAND, history=young)) is None
    stop = move(attempt, facts(SPOT, ON_DEMAND, history=old))
    assert stop is not None
    assert "spot has been available" in stop.reason


@pytest.mark.parametrize(
    "still",
    [
        {"deadline": None},
        {"state": JobState.STARTING},
        {"offer": FREE},
    ],
)
def test_nothing_moves_without_a_deadline_before_it_works_or_for_money_that_is_not_spent(still: dict[str, Any]) -> None:
    offer = still.pop("offer", SPOT)
    deadline = still.pop("deadline", NOW + 40 * HOUR)
    attempt = replace(running(offer, deadline=deadline), **still)
    assert move(attempt, facts(SPOT, ON_DEMAND, now=NOW + 31.7 * HOUR)) is None


def test_nothing_moves_while_somebody_cannot_say() -> None:
    attempt = running(SPOT, deadline=NOW + 40 * HOUR)
    assert move(attempt, facts(ON_DEMAND, now=NOW + 31.7 * HOUR, unknown={"runpod": "timeout"})) is None


@pytest.mark.parametrize(
    ("changes", "hours"),
    [
        ({}, 8.0),
        ({"est_hours": None}, None),
        ({"told_total": 100, "checkpoint": 25}, 6.0),
        # Measured slower than estimated, and faster: the longer is planned for.
        ({"told_total": 100, "checkpoint": 25, "steps_per_s": 75 / 36000}, 10.0),
        ({"told_total": 100, "checkpoint": 25, "steps_per_s": 75 / 3600}, 6.0),
        ({"est_hours": None, "told_total": 100, "steps_per_s": 100 / 3600}, 1.0),
        ({"told_total": 100, "checkpoint": 100}, 0.0),
    ],
)
def test_the_work_that_is_left_is_the_longer_of_told_and_measured(changes: dict[str, Any], hours: float | None) -> None:
    step, speed = changes.pop("checkpoint", 0), changes.pop("steps_per_s", None)
    saved = Checkpoint(step=step, attempt=1, manifest_uri="gs://b/m", generation=1)
    told = Progress(at=NOW, step=step, steps_per_s=speed)
    left = work_left_s(job(**changes, checkpoint=saved, progress=told))
    assert left == (None if hours is None else pytest.approx(hours * 3600))


@pytest.mark.parametrize(("size", "gib"), [(0, 0.5), (2**20, 0.5), (6 * 2**30, 6.0)])
def test_a_large_checkpoint_counts_with_its_size(size: int, gib: float) -> None:
    saved = Checkpoint(step=1, attempt=1, manifest_uri="gs://b/m", generation=1, size=size)
    assert placement.needs_of(job(checkpoint=saved), NOW).checkpoint_gib == gib
