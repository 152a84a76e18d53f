"""Where a job runs next, or why it waits; whether a running job should move.

The choice is the cheapest to finish within the price cap and the budget left. With a deadline, `spot.deadline` says
whether spot, on demand or waiting is the cheapest way that cannot miss it; an impossible deadline is refused at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from goblin.core.money import show_usd, to_micros
from goblin.jobs.domain.job import Job, JobState, StopRequest
from goblin.jobs.domain.market import Candidate, Listing, MarketPrices, NoPlacement, Offer, Placement
from goblin.jobs.policy.job_spec import wanted
from goblin.jobs.policy.spot.deadline import Infeasible, Mode, Situation, Terms, check_deadline, choose_mode
from goblin.jobs.policy.spot.market_history import MarketHistory, may_come
from goblin.jobs.policy.spot.offers import Needs, choose_offer
from goblin.jobs.policy.spot.preemption_rates import HOUR_S, PreemptionRates

STEP_S = 60.0
"""Time between two decisions."""
WORK_S_UNKNOWN = HOUR_S
"""Assumed work when its length is unknown, to compare offers."""
ON_DEMAND_DELAY_S = 600.0
"""Longest time that on demand may be sold out at a start; a promised deadline leaves this much time."""
IMAGE_GIB = 4.0
"""Image size that a host downloads before it can start, beside the job's own data."""
CHECKPOINT_GIB = 0.5
"""Assumed size of a checkpoint, until a larger one was saved."""
SAVE_S = 10.0
STOP_WITHIN = timedelta(minutes=3)
"""Time for an attempt to save, upload and give the job back."""
ADMITTED_WITHIN = timedelta(minutes=10)
"""After this a deadline is refused by what is known, even if a provider still does not answer."""
CANDIDATES_MAX = 16
NUMBER_MAX = 10**15
"""Highest number of an offer: a billion dollars in micro-dollars."""
_GIB = 1024**3


@dataclass(frozen=True, kw_only=True, slots=True)
class PlacementFacts:
    """The market and the budget state now."""

    listings: Mapping[str, Listing]
    """By provider; only those with known offers and inventory: at others nothing is rented."""
    unknown: Mapping[str, str] = field(default_factory=dict)
    """Providers that did not answer, each with the reason."""
    history: MarketHistory = field(default_factory=MarketHistory)
    halt: Mapping[str, str] = field(default_factory=dict)
    """By provider: why nothing may be spent there for the job."""
    caps: Mapping[str, int] = field(default_factory=dict)
    """Operator's price cap by provider, in micro-dollars per hour, on top of the job's own cap."""
    now: datetime


@dataclass(frozen=True, kw_only=True, slots=True)
class NotPromised:
    """A deadline that cannot be promised by what is known."""

    reason: str
    """Why not, with the nearest deadline that could be promised."""
    final: bool
    """Whether the job is refused; False: a provider did not answer, so decide again later."""


def admit(job: Job, facts: PlacementFacts) -> NotPromised | None:
    """Check whether a job's deadline can be promised; None: it can, or the job has none."""
    if job.spec.deadline is None:
        return None
    needs, (spot, on_demand) = needs_of(job, facts.now), _best(job, facts, capped=False)
    found = check_deadline(
        work_s=needs.work_s, time_s=needs.time_left_s, step_s=STEP_S, terms=_terms(spot, on_demand, needs),
        price_usd_micros_per_hour_max=needs.price_usd_micros_per_hour_max,
        budget_usd_micros=needs.budget_usd_micros,
    )  # fmt: skip
    if not isinstance(found, Infeasible):
        return None
    final = not facts.unknown or facts.now - job.requested_at >= ADMITTED_WITHIN
    return NotPromised(reason=_nearest(found, facts.now), final=final)


def is_sound(offer: Offer) -> bool:
    """Check that an offer's numbers can be computed with. A host writes some of them."""
    amounts = (
        offer.price_usd_micros_per_hour, offer.on_demand_usd_micros_per_hour or 0,
        offer.storage_usd_micros_per_gib_month, offer.download_usd_micros_per_gib, offer.upload_usd_micros_per_gib,
        offer.gpu_count, offer.gpu_memory_mib, offer.boot_s, offer.ends_in_s or 0.0,
    )  # fmt: skip
    shares = (offer.reliability if offer.reliability is not None else 1.0, offer.download_mib_per_s)
    # A comparison with NaN is false.
    return all(0 <= amount <= NUMBER_MAX for amount in amounts) and 0 <= shares[0] <= 1 and 0 < shares[1] <= NUMBER_MAX


def place(job: Job, facts: PlacementFacts) -> Placement | NoPlacement:
    """Choose the offer that a queued job is placed on now."""
    offers, barred = _offers(job, facts)
    if job.spec.deadline is None:
        return _told(_choose(needs_of(job, facts.now), offers, facts), barred, facts)
    return _told(_place_in_time(job, offers, facts), barred, facts)


def _place_in_time(job: Job, offers: Sequence[Offer], facts: PlacementFacts) -> Placement | NoPlacement:
    needs, (spot, on_demand) = needs_of(job, facts.now), _best(job, facts)
    if spot is None and on_demand is None:
        return _choose(replace(needs, time_left_s=None), offers, facts)
    if on_demand is not None:
        dearer = spot is not None and on_demand.run.cost_usd_micros > spot.run.cost_usd_micros
        hoped = spot is None and may_come(facts.history, wanted(job.spec), now=facts.now)
        if not dearer and not hoped:
            return _beside(on_demand, spot, "on demand costs no more and is not preempted")
    decision = choose_mode(
        _situation(needs, running=Mode.WAIT, spot_available=spot is not None),
        _terms(spot, on_demand, needs), _rates(spot, facts),
    )  # fmt: skip
    chosen = {Mode.SPOT: spot, Mode.ON_DEMAND: on_demand, Mode.WAIT: None}[decision.mode]
    if chosen is None:
        known = [one for one in (spot, on_demand) if one is not None]
        return NoPlacement(
            reason=decision.reason, candidates=tuple(candidate for one in known for candidate in one.candidates)
        )
    other = on_demand if chosen is spot else spot
    return replace(_beside(chosen, other, decision.reason), reason=f"{decision.reason}; {chosen.reason}")


def _beside(chosen: Placement, other: Placement | None, reason: str) -> Placement:
    """Add the other mode's candidates to a placement; the best of them is rejected for this reason."""
    if other is None:
        return chosen
    half = CANDIDATES_MAX // 2
    best, *rest = other.candidates[:half]
    return replace(chosen, candidates=(*chosen.candidates[:half], replace(best, rejected=reason), *rest))


def move(job: Job, facts: PlacementFacts) -> StopRequest | None:
    """Decide whether a running job with a deadline should give its instance back and be placed elsewhere."""
    placement = job.placement
    if job.state is not JobState.RUNNING or job.spec.deadline is None or placement is None or job.stop is not None:
        return None
    if facts.unknown or placement.offer.price_usd_micros_per_hour == 0:
        return None
    needs, (spot, on_demand) = needs_of(job, facts.now), _best(job, facts)
    running = Mode.SPOT if placement.offer.spot else Mode.ON_DEMAND
    spot, on_demand = (placement, on_demand) if running is Mode.SPOT else (spot, placement)
    decision = choose_mode(
        _situation(needs, running=running, spot_available=spot is not None),
        _terms(spot, on_demand, needs), _rates(spot, facts),
    )  # fmt: skip
    target = {Mode.SPOT: spot, Mode.ON_DEMAND: on_demand}.get(decision.mode)
    if decision.mode in (running, Mode.WAIT) or target is None:
        return None
    return StopRequest(reason=f"moves: {decision.reason}", by=facts.now + STOP_WITHIN)


def work_left_s(job: Job) -> float | None:
    """Compute the seconds of work after the last checkpoint; None: unknown.

    The longer of the estimate and the measurement counts: a promised deadline must hold for the slower.
    """
    total, told = job.total, job.progress
    share = 1 - min(1.0, job.saved_step / total) if total else 1.0
    estimated = job.spec.est_hours * HOUR_S * share if job.spec.est_hours is not None else None
    measured = None
    if total and told is not None and told.steps_per_s:
        measured = max(0, total - job.saved_step) / told.steps_per_s
    known = [one for one in (estimated, measured) if one is not None]
    return max(known, default=None)


def needs_of(job: Job, now: datetime) -> Needs:
    """Derive what a job needs of an offer from now on."""
    spec, left_s = job.spec, work_left_s(job)
    budget = None if spec.budget_usd is None else max(0, to_micros(spec.budget_usd) - job.spent_usd_micros)
    return Needs(
        work_s=WORK_S_UNKNOWN if left_s is None else max(left_s, 1.0),
        gpu_memory_mib_min=spec.gpu_memory_mib_min,
        disk_gib=spec.disk_gib,
        download_gib=IMAGE_GIB + (job.dataset.size / _GIB if job.dataset else 0.0),
        checkpoint_gib=max(CHECKPOINT_GIB, job.checkpoint.size / _GIB if job.checkpoint else 0.0),
        save_s=job.progress.save_s if job.progress and job.progress.save_s else SAVE_S,
        interval_s_max=spec.checkpoint_minutes * 60,
        price_usd_micros_per_hour_max=None if spec.max_price_per_hour is None else to_micros(spec.max_price_per_hour),
        # Without an estimate the cost is unknown; the ledger stops the job when its budget is used up.
        budget_usd_micros=budget if left_s is not None else None,
        time_left_s=None if spec.deadline is None else (spec.deadline - now).total_seconds(),
    )


def _offers(job: Job, facts: PlacementFacts) -> tuple[list[Offer], list[Candidate]]:
    """Split the offers into those that may be rented for the job and those that are barred."""
    allowed, barred = [], []
    for provider, listing in sorted(facts.listings.items()):
        cap = facts.caps.get(provider)
        for offer in listing.offers:
            reason = facts.halt.get(provider, "") if offer.price_usd_micros_per_hour else ""
            if cap is not None and offer.price_usd_micros_per_hour > cap:
                reason = f"{show_usd(offer.price_usd_micros_per_hour)} an hour; {provider}'s cap is {show_usd(cap)}"
            if reason:
                barred.append(Candidate(offer_id=offer.offer_id, provider=provider, spot=offer.spot, rejected=reason))
            else:
                allowed.append(_capped(offer, cap))
    return allowed, barred


def _capped(offer: Offer, cap: int | None) -> Offer:
    """Limit the bids on a spot offer to the operator's cap."""
    if cap is None or not offer.spot:
        return offer
    known = offer.on_demand_usd_micros_per_hour
    return replace(offer, on_demand_usd_micros_per_hour=cap if known is None else min(known, cap))


def _best(job: Job, facts: PlacementFacts, *, capped: bool = True) -> tuple[Placement | None, Placement | None]:
    """Find the best spot and the best on-demand placement, ignoring the budget and, unless `capped`, the price cap."""
    offers, _ = _offers(job, facts)
    # Whether the budget suffices is decided for the whole run, not per offer.
    needs = replace(needs_of(job, facts.now), budget_usd_micros=None, time_left_s=None)
    if not capped:
        needs = replace(needs, price_usd_micros_per_hour_max=None)
    both = (_choose(needs, [offer for offer in offers if offer.spot is spot], facts) for spot in (True, False))
    spot, on_demand = (one if isinstance(one, Placement) else None for one in both)
    return spot, on_demand


def _choose(needs: Needs, offers: Sequence[Offer], facts: PlacementFacts) -> Placement | NoPlacement:
    markets: dict[str, MarketPrices] = {}
    for _, listing in sorted(facts.listings.items()):
        markets |= listing.markets
    return choose_offer(
        needs, offers, rates=facts.history.rates, reputations=facts.history.machines, markets=markets, now=facts.now
    )


def _terms(spot: Placement | None, on_demand: Placement | None, needs: Needs) -> Terms:
    starts = [_start_s(one, needs) for one in (spot, on_demand) if one is not None]
    interval_s = max((one.run.interval_s for one in (spot, on_demand) if one is not None), default=0.0)
    start_s = max(starts, default=0.0)
    paid = on_demand is not None and on_demand.offer.price_usd_micros_per_hour > 0
    return Terms(
        spot_usd_micros_per_hour=_all_in(spot),
        on_demand_usd_micros_per_hour=_all_in(on_demand),
        changeover_s=start_s + interval_s / 2,
        # The start may take twice as long as stated, and a whole interval may be lost.
        changeover_s_max=2 * start_s + interval_s if paid else start_s + interval_s,
        on_demand_delay_s_max=ON_DEMAND_DELAY_S if paid else 0.0,
    )


def _start_s(placement: Placement, needs: Needs) -> float:
    offer = placement.offer
    if not offer.price_usd_micros_per_hour:
        return offer.boot_s
    return offer.boot_s + (needs.download_gib + needs.checkpoint_gib) * 1024 / max(offer.download_mib_per_s, 0.1)


def _all_in(placement: Placement | None) -> int | None:
    if placement is None:
        return None
    return placement.candidates[0].all_in_usd_micros_per_hour or placement.run.price_usd_micros_per_hour


def _rates(spot: Placement | None, facts: PlacementFacts) -> PreemptionRates:
    return facts.history.rates.get(spot.offer.pool, PreemptionRates()) if spot is not None else PreemptionRates()


def _situation(needs: Needs, *, running: Mode, spot_available: bool) -> Situation:
    return Situation(
        work_left_s=needs.work_s, time_left_s=needs.time_left_s, running=running, spot_available=spot_available,
        step_s=STEP_S, money_left_usd_micros=needs.budget_usd_micros,
    )  # fmt: skip


def _told(
    found: Placement | NoPlacement, barred: Sequence[Candidate], facts: PlacementFacts
) -> Placement | NoPlacement:
    """Add the barred candidates, limit their number, and complete the reason."""
    candidates = (*found.candidates, *barred)
    found = replace(found, candidates=candidates[:CANDIDATES_MAX])
    if isinstance(found, Placement):
        return found
    said = [found.reason] if candidates or not (barred or facts.unknown) else []
    said += sorted({candidate.rejected for candidate in barred})[:3]
    said += [f"{name} did not answer: {reason}" for name, reason in sorted(facts.unknown.items())]
    return replace(found, reason="; ".join(said))


def _nearest(found: Infeasible, now: datetime) -> str:
    said = [f"the deadline cannot be promised: {found.reason}"]
    if found.time_s_min is not None and found.price_usd_micros_per_hour_min is not None:
        said.append(f"the nearest possible one is {now + timedelta(seconds=found.time_s_min):%Y-%m-%dT%H:%M:%SZ}")
    if found.price_usd_micros_per_hour_min is not None:
        said.append(f"at {show_usd(found.price_usd_micros_per_hour_min)} an hour")
    if found.budget_usd_micros_min is not None:
        said.append(f"with a budget of {show_usd(found.budget_usd_micros_min)}")
    return "; ".join(said)
