"""Place queued jobs: take a market snapshot, rent one instance for each job that fits, note why the others wait.

The order of steps makes a crash harmless: write the attempt lease and the planned instance reservation into the job,
reserve budget, write the result into the job, then rent the instance. A crash at any point leaves a lease that expires.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from typing import TypeVar

from goblin.billing.domain.accounts import Account
from goblin.billing.domain.ledger import TOTAL
from goblin.billing.policy.allocation import InsufficientBudget
from goblin.core.errors import ProviderUnavailable, Refused, StoreUnavailable, Transient
from goblin.core.labels import attempt_label
from goblin.jobs import owners, reservations, worker_api
from goblin.jobs.domain.instances import AttemptLease, Inventory, KnownInventory, RentalOrder, UnknownInventory
from goblin.jobs.domain.job import InstanceReservation, Job, JobKind, JobState, StopRequest
from goblin.jobs.domain.market import InstanceRequirements, Listing, NoPlacement, Placement
from goblin.jobs.lifecycle import JobDeps, act, announce, change
from goblin.jobs.policy import placement as placement_policy
from goblin.jobs.policy import queue, state_machine
from goblin.jobs.policy import reservations as reservation_policy
from goblin.jobs.policy.job_spec import wanted
from goblin.jobs.policy.placement import PlacementFacts
from goblin.jobs.policy.reservations import SpendingHalt
from goblin.jobs.policy.spot import market_history
from goblin.jobs.policy.spot.market_history import MarketHistory
from goblin.jobs.policy.state_machine import SAID_MAX, Transition, Trigger
from goblin.jobs.ports import StoredJob

log = logging.getLogger(__name__)

T = TypeVar("T")
Note = Callable[[MarketHistory], MarketHistory]
QUESTIONS_MAX = 12
"""Distinct `InstanceRequirements` for which providers are queried in one run; further ones wait for the next run."""


@dataclass(slots=True)
class MarketSnapshot:
    """The market in one run: providers are queried once for each distinct `InstanceRequirements`."""

    deps: JobDeps
    inventories: Mapping[str, Inventory]
    history: MarketHistory
    loaded: MarketHistory
    version: str | None
    frozen: SpendingHalt
    budgets: Mapping[str, Account]
    """Accounts with a limit among `total` and the providers, by name."""
    taken: set[str | None] = field(default_factory=set)
    """Machines that this run has tried to rent."""
    short: dict[str, str] = field(default_factory=dict)
    """Providers whose budget does not cover a start, with the reason: other jobs of this run do not try them again."""
    notes: list[Note] = field(default_factory=list)
    seen: dict[InstanceRequirements, dict[str, Listing | UnknownInventory]] = field(default_factory=dict)

    async def facts(self, job: Job) -> PlacementFacts | None:
        """Collect the facts for a job's placement; None when this run has made `QUESTIONS_MAX` queries."""
        want, now = wanted(job.spec), self.deps.clock.now()
        if want not in self.seen:
            if len(self.seen) >= QUESTIONS_MAX:
                return None
            self.seen[want] = await self._ask(want)
            listings = {name: one for name, one in self.seen[want].items() if isinstance(one, Listing)}
            self.history = market_history.look(self.history, want, listings, now=now)
        answers = self.seen[want]
        return PlacementFacts(
            listings={name: self._untaken(one) for name, one in answers.items() if isinstance(one, Listing)},
            unknown={name: one.reason for name, one in answers.items() if isinstance(one, UnknownInventory)},
            history=self.history, halt=self._halted(job, answers), caps=self.deps.caps, now=now,
        )  # fmt: skip

    async def _ask(self, want: InstanceRequirements) -> dict[str, Listing | UnknownInventory]:
        """Query all providers of the kind at once, except those with an unknown inventory: nothing is rented there."""
        answers: dict[str, Listing | UnknownInventory] = {}
        asked = []
        for name, provider in sorted(self.deps.compute.items()):
            inventory = self.inventories.get(name, UnknownInventory(reason="its inventory was not listed"))
            if want.kind not in provider.kinds:
                continue
            if isinstance(inventory, KnownInventory):
                asked.append(name)
            else:
                answers[name] = inventory
        found = await asyncio.gather(*(ask(name, partial(self.deps.compute[name].offers, want)) for name in asked))
        return answers | {name: _sound(one) for name, one in zip(asked, found, strict=True)}

    def _untaken(self, listing: Listing) -> Listing:
        """Leave out the machines that this run has tried to rent: each can be rented once."""
        return replace(listing, offers=tuple(one for one in listing.offers if one.machine not in self.taken))

    def _halted(self, job: Job, providers: Collection[str]) -> dict[str, str]:
        reasons = {}
        for name in providers:
            reasons[name] = reservation_policy.why_halted(
                reservation_policy.accounts_of(name, job.job_id, reservation_policy.payer_of(job)), self.frozen.starts
            )
            reasons[name] = reasons[name] or self.short.get(name, "")
            if not reasons[name] and job.spec.budget_usd is None and not self.budgets.keys() & {TOTAL, name}:
                reasons[name] = reservation_policy.unbudgeted(name)
        return {name: reason for name, reason in reasons.items() if reason}

    def remember(self, job: Job, trigger: Trigger) -> None:
        """Note in the market history what the end of an attempt says about its pool and its machine."""
        if job.placement is None:
            return
        offer, now = job.placement.offer, self.deps.clock.now()
        kind = BLAMED.get(trigger)
        if kind == "died" and (job.lease is None or job.lease.progressed_at is None):
            kind = "boot"
        if offer.spot and trigger in LOST:
            self._note(lambda history: market_history.lost(history, offer.pool, now=now))
        if kind is not None and (machine := offer.machine) is not None:
            self._note(lambda history: market_history.blame(history, machine, kind=kind, now=now))

    def _note(self, note: Note) -> None:
        self.history = note(self.history)
        self.notes.append(note)

    async def close(self) -> None:
        """Save the market history. Never raises: these are statistics."""
        if self.history == self.loaded:
            return
        try:
            if not await self.deps.market.save(self.history, self.version) and self.notes:
                # Another process saved its look at the market in the same minute, which will do. Add our own losses.
                history, version = await self.deps.market.load()
                for note in self.notes:
                    history = note(history)
                await self.deps.market.save(history, version)
        except StoreUnavailable as error:
            log.warning("The market history could not be saved: %s", error)


async def ask(provider: str, question: Callable[[], Awaitable[T]]) -> T | UnknownInventory:
    """Ask a provider; whatever its answer raises, this provider is unknown, and no other is affected."""
    try:
        return await question()
    except Exception as error:
        log.exception("%s: its answer raised an unexpected error", provider)
        return UnknownInventory(reason=f"its answer cannot be read: {type(error).__name__}: {error}"[:SAID_MAX])


def _sound(listing: Listing | UnknownInventory) -> Listing | UnknownInventory:
    """Leave out offers with impossible numbers: one host's offer must not end the comparison for every job."""
    if isinstance(listing, UnknownInventory):
        return listing
    sound = tuple(offer for offer in listing.offers if placement_policy.is_sound(offer))
    if len(sound) < len(listing.offers):
        log.warning("%d offers with impossible numbers are left out", len(listing.offers) - len(sound))
    return replace(listing, offers=sound)


LOST = frozenset({Trigger.STOPPED, Trigger.GONE, Trigger.SILENT})
"""Triggers that mean that a spot instance was taken away."""
BLAMED = {Trigger.SILENT: "died", Trigger.GONE: "died", Trigger.STALLED: "speed", Trigger.FAULTY: "ecc"}
"""Kind of failure that is noted against the machine, by trigger."""


async def take_snapshot(inventories: Mapping[str, Inventory], deps: JobDeps) -> MarketSnapshot:
    """Start the snapshot of a run. Raises `StoreUnavailable`: without the freezes nothing is rented."""
    (history, version), frozen, limited = await asyncio.gather(
        deps.market.load(),
        reservations.halt(deps.money.ledger),
        deps.money.ledger.limited([TOTAL, *sorted(deps.compute)]),
    )
    return MarketSnapshot(
        deps=deps, inventories=inventories, history=history, loaded=history, version=version, frozen=frozen,
        budgets={account.name: account for account in limited},
    )  # fmt: skip


async def place_all(
    open_jobs: Sequence[StoredJob],
    market: MarketSnapshot,
    deps: JobDeps,
    step: Callable[[str], AbstractContextManager[None]],
) -> int:
    """Offer the free places to the queued jobs in order. A job that fits no offer does not block the jobs behind it.

    Args:
        open_jobs: All open jobs, as read just now.
        market: Snapshot of the run.
        deps: Dependencies of the services.
        step: Isolates what is done for the job that it is given: its errors end in the run's report.

    Returns:
        The number of jobs placed.
    """
    stored = {one.job.job_id: one for one in open_jobs}
    jobs = [one.job for one in open_jobs]
    taken: Counter[str] = queue.places_taken(jobs)
    placed = 0
    for job in queue.order_queue(jobs, now=deps.clock.now()):
        kept = queue.keeps_place(job)
        if not kept and not queue.has_place(job.spec.kind, taken, deps.limits):
            with step(job.job_id):
                await _wait(stored[job.job_id], queue.no_place(job.spec.kind, deps.limits), deps)
            continue
        with step(job.job_id):
            if await _place(stored[job.job_id], market, deps):
                taken[job.spec.kind] += 0 if kept else 1
                placed += 1
    return placed


async def _place(stored: StoredJob, market: MarketSnapshot, deps: JobDeps) -> bool:
    facts = await market.facts(stored.job)
    if facts is None:
        return False
    found = placement_policy.place(stored.job, facts)
    if isinstance(found, NoPlacement):
        await _wait(stored, found, deps)
        return False
    plan = _plan(stored.job, found, deps)
    short = (
        reservation_policy.uncovered(plan, market.budgets, deps.clock.now()) if plan and stored.job.refusals else None
    )
    if short is not None:
        # Only after a first refusal: that one comes from the ledger, which announces that the budget is used up.
        market.short[found.offer.provider] = reservation_policy.said(short)
        return await _place(stored, market, deps)
    if found.offer.machine is not None:
        market.taken.add(found.offer.machine)
    if await _rent(stored, found, plan, market, deps):
        return True
    if found.offer.provider not in market.short:
        return False
    market.taken.discard(found.offer.machine)
    after = await deps.jobs.get(stored.job.job_id)
    if after is None or after.job.state is not JobState.QUEUED or after.job.stop is not None:
        return False
    # Another, dearer provider may have budget left.
    return await _place(after, market, deps)


async def _wait(stored: StoredJob, why: NoPlacement, deps: JobDeps) -> None:
    """Write into a job why it waits, once for each reason."""
    job = stored.job
    if job.no_placement is None or job.no_placement.reason != why.reason:
        await deps.jobs.replace(replace(job, no_placement=why, updated_at=deps.clock.now()), stored.version)


def _plan(job: Job, placement: Placement, deps: JobDeps) -> InstanceReservation | None:
    """Plan the instance reservation of the next attempt; None where the instance is free."""
    now, label = deps.clock.now(), attempt_label(job.job_id, job.attempt + 1)
    start_s_max = deps.compute[placement.offer.provider].start_s_max
    return reservation_policy.first(
        label, placement, placement_policy.needs_of(job, now), start_s_max=start_s_max, now=now,
        payer=reservation_policy.payer_of(job),
    )  # fmt: skip


async def _rent(
    stored: StoredJob, placement: Placement, plan: InstanceReservation | None, market: MarketSnapshot, deps: JobDeps
) -> bool:
    """Write the lease, reserve budget, write that, rent. Only the process that wrote the lease rents, and once."""
    job, now = stored.job, deps.clock.now()
    provider = deps.compute[placement.offer.provider]
    attempt = job.attempt + 1
    token = worker_api.new_token(job.job_id, attempt, deps.new_secret())
    label = attempt_label(job.job_id, attempt)
    lease = AttemptLease(
        provider=provider.name, label=label, token_sha256=worker_api.digest(token), placed_at=now,
        until=now + timedelta(seconds=provider.start_s_max), resumed_step=job.saved_step,
        key_until=now + worker_api.KEY_LIFE if job.spec.kind == JobKind.BATCH else None,
    )  # fmt: skip
    transition = state_machine.apply(
        job, Trigger.PLACED, now=now, reason=f"attempt {attempt} on {provider.name} from step {job.saved_step}: "
        f"{placement.reason}", attempt=attempt, lease=lease, placement=placement, no_placement=None,
        reservations=(*job.reservations, plan) if plan else job.reservations,
    )  # fmt: skip
    if transition is None:
        return False
    written = await deps.jobs.place(transition.job, stored.version, limit=deps.limits.get(job.spec.kind, 0))
    if written is None:
        return False
    await announce(written.job, deps)
    if plan is not None and not await _put_aside(job.job_id, plan, market, deps):
        return False
    order = RentalOrder(
        label=label, kind=job.spec.kind, environment=deps.environment(token),
        offer=placement.offer, bid_usd_micros_per_hour=placement.bid_usd_micros_per_hour,
        image=job.spec.image or deps.image, disk_gib=job.spec.disk_gib,
    )  # fmt: skip
    try:
        if job.spec.kind == JobKind.BATCH:
            # A batch sends its items to the gateway with the attempt's own token.
            await owners.open_key(job, lease.token_sha256, now + worker_api.KEY_LIFE, deps)
        instance_id = await provider.rent(order)
    except (ProviderUnavailable, Refused) as error:
        await _no_instance(job.job_id, label, str(error), deps)
        return False
    except Transient as error:
        log.warning(
            "Job %s: it is unknown whether %s was rented, the next inventory will show it: %s", job.job_id, label, error
        )
        return True
    rented = f"instance {instance_id} of {provider.name}"

    def name(job: Job) -> Transition | None:
        if job.lease is None or job.lease.label != label:
            return None
        lease = replace(job.lease, instance_id=instance_id)
        named = reservation_policy.named(job.reservations, label, instance_id)
        return state_machine.apply(
            job, Trigger.RENTED, now=deps.clock.now(), reason=rented, lease=lease, reservations=named
        )

    await change(deps, job.job_id, name)
    return True


async def _put_aside(job_id: str, plan: InstanceReservation, market: MarketSnapshot, deps: JobDeps) -> bool:
    """Reserve the first slice and write it into the job; without it nothing is rented."""
    try:
        found = await reservations.reserve(plan, deps.money, now=deps.clock.now())
    except StoreUnavailable as error:
        await _no_instance(job_id, plan.label, f"{error.message} Without the ledger nothing is rented.", deps)
        return False
    if isinstance(found, InsufficientBudget):
        if found.account in (TOTAL, plan.provider):
            concerned = deps.compute if found.account == TOTAL else (plan.provider,)
            market.short |= dict.fromkeys(concerned, reservation_policy.said(found))
        await _no_instance(
            job_id, plan.label, reservation_policy.said(found), deps, ends_job=reservation_policy.is_used_up(found)
        )
        return False

    def write(job: Job) -> Transition | None:
        if job.lease is None or job.lease.label != plan.label or plan not in job.reservations:
            return None
        return state_machine.note(
            job, reservations=tuple(found if reservation == plan else reservation for reservation in job.reservations)
        )

    if await change(deps, job_id, write) is not None:
        return True
    # The attempt ended before its budget was reserved: rent nothing and give the budget back.
    await reservations.settle(reservation_policy.ended(found, found.since), deps.money, now=deps.clock.now())
    return False


async def _no_instance(job_id: str, label: str, reason: str, deps: JobDeps, *, ends_job: bool = False) -> None:
    """Note that no instance was or will be rented under this label: its reservation ends where it began."""

    def decide(job: Job) -> Transition | None:
        if job.lease is None or job.lease.label != label:
            return None
        now = deps.clock.now()
        unspent = tuple(
            reservation_policy.ended(reservation, reservation.since) if reservation.label == label else reservation
            for reservation in job.reservations
        )
        stop = StopRequest(reason=reason, by=now, ends_job=True) if ends_job else job.stop
        return state_machine.apply(job, Trigger.NOT_RENTED, now=now, reason=reason, reservations=unspent, stop=stop)

    transition = await change(deps, job_id, decide)
    if transition is not None:
        await act(transition, deps)
