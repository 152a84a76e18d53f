"""Desired against actual: each job brought on as far as it goes, each instance without a lease ended.

Level-triggered: everything is found out again from documents and inventories, so that a crash anywhere before, an
event that never came or one that came twice changes nothing about where it ends.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import timedelta

from goblin.domain.compute import Inventory, Known, Lease, Order, attempt_label, job_of_label
from goblin.domain.jobs import Job, State
from goblin.domain.market import Listing, Wanted
from goblin.errors import Broken, GoblinError, NotFound, ProviderUnavailable, Refused, Transient
from goblin.job_ports import ComputeProvider, Stored
from goblin.policy import jobs as policy
from goblin.policy.jobs import Fact, Transition
from goblin.services import batch, checkpoints, leases
from goblin.services.batch import Rejected
from goblin.services.jobs import JobDeps, act, change

log = logging.getLogger(__name__)

OPEN_MAX = 1000
"""Open jobs looked at in one run, the oldest first."""
STEPS_MAX = 8
"""Transitions of one job in one run; more than the longest way without waiting."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """What a run did."""

    moved: int
    placed: int
    released: int
    errors: tuple[str, ...]


async def reconcile(deps: JobDeps, *, only: str | None = None) -> Report:
    """One run over all open jobs, or over one of them right after an event.

    Errors of one job or provider do not keep the others waiting: they are in the report.

    Raises:
        StoreUnavailable: The jobs cannot be read.
    """
    before = await deps.jobs.list_open(OPEN_MAX)
    # After the jobs: an instance that a job names was there to be seen.
    inventories = await _inventories(deps.compute)
    errors = [f"{name}: {seen.reason}" for name, seen in inventories.items() if not isinstance(seen, Known)]
    moved = placed = released = 0
    for stored in before:
        if only in (None, stored.job.job_id):
            try:
                moved += await _advance(stored, inventories, deps)
            except GoblinError as error:
                errors.append(f"job {stored.job.job_id}: {error}")
    try:
        placed = await _place_all(inventories, deps)
    except GoblinError as error:
        errors.append(f"placing: {error}")
    if only is None:
        released, unreleased = await _sweep(inventories, deps)
        errors += unreleased
    for line in errors:
        log.warning("reconcile: %s", line)
    return Report(moved=moved, placed=placed, released=released, errors=tuple(errors))


async def _inventories(compute: Mapping[str, ComputeProvider]) -> dict[str, Inventory]:
    """Each provider's, listed once and at the same time."""
    seen = await asyncio.gather(*(provider.inventory() for provider in compute.values()))
    return dict(zip(compute, seen, strict=True))


async def _advance(stored: Stored, inventories: Mapping[str, Inventory], deps: JobDeps) -> int:
    """Bring one job on until nothing more follows now; whoever writes it meanwhile takes over."""
    for moved in range(STEPS_MAX):
        transition = await _next(stored.job, inventories, deps)
        if transition is None:
            return moved
        written = await deps.jobs.replace(transition.job, stored.version)
        if written is None:
            return moved
        if transition.job.state is not stored.job.state:
            log.info("job %s: %s: %s", written.job.job_id, written.job.state, written.job.reason)
        await act(transition, deps)
        stored = written
    return STEPS_MAX


async def _next(job: Job, inventories: Mapping[str, Inventory], deps: JobDeps) -> Transition | None:
    now = deps.clock.now()
    if job.state is State.REQUESTED:
        found = await batch.check_dataset(job, deps)
        if isinstance(found, Rejected):
            return policy.apply(job, Fact.REJECTED, now=now, reason=found.reason)
        reason = f"{found.items} items; waits for a free place"
        return policy.apply(job, Fact.ACCEPTED, now=now, reason=reason, dataset=found)
    if job.state is State.FINISHING:
        return await _compose(job, deps)
    inventory = inventories.get(job.lease.provider) if job.lease else None
    observed = policy.observe(job, inventory, now=now)
    if observed is None:
        return None
    fact, reason = observed
    changes = {}
    if job.state is State.PREEMPTED and (saved := await checkpoints.newer(job, deps)) is not None:
        # Before the next attempt: once it is placed, the last one's checkpoints come too late.
        return policy.apply(job, Fact.SAVED, now=now, reason=f"found checkpoint {saved.step}", checkpoint=saved)
    if fact is Fact.RENTED and job.lease and isinstance(inventory, Known):
        instance = inventory.by_label()[job.lease.label]
        changes["lease"] = replace(job.lease, instance_id=instance.instance_id)
    return policy.apply(job, fact, now=now, reason=reason, **changes)


async def _compose(job: Job, deps: JobDeps) -> Transition | None:
    now = deps.clock.now()
    try:
        manifests = await checkpoints.chain(job.checkpoint, deps) if job.checkpoint else []
        refused = await batch.write_output(job, manifests, deps)
    except (Broken, NotFound) as error:
        refused = Rejected(reason=str(error))
    if refused is not None:
        return policy.apply(job, Fact.BROKEN, now=now, reason=refused.reason)
    return policy.apply(job, Fact.COMPOSED, now=now, reason=f"output in {job.spec.output_uri}")


async def _place_all(inventories: Mapping[str, Inventory], deps: JobDeps) -> int:
    """Give every queued job that has a free place its next attempt."""
    open_jobs = await deps.jobs.list_open(OPEN_MAX)
    chosen = {job.job_id for job in policy.choose_next([stored.job for stored in open_jobs], deps.limits)}
    placed = 0
    for stored in open_jobs:
        if stored.job.job_id in chosen:
            provider = _choose_provider(stored.job, inventories, deps)
            if provider is not None and await _place(stored, provider, deps):
                placed += 1
    return placed


def _choose_provider(job: Job, inventories: Mapping[str, Inventory], deps: JobDeps) -> ComputeProvider | None:
    """The first, by name, that can run the job and whose inventory is known: on unknown nothing is launched."""
    for name, provider in sorted(deps.compute.items()):
        if job.spec.kind in provider.kinds and isinstance(inventories.get(name), Known):
            return provider
    return None


async def _place(stored: Stored, provider: ComputeProvider, deps: JobDeps) -> bool:
    """Write the lease, then rent: only who wrote it rents, once, so no attempt has two instances.

    A crash in between leaves a lease that nobody claims: it runs out, and the next attempt has another label.
    """
    job, now = stored.job, deps.clock.now()
    attempt = job.attempt + 1
    token = leases.new_token(job.job_id, attempt, deps.new_secret())
    lease = Lease(
        provider=provider.name, label=attempt_label(job.job_id, attempt), token_sha256=leases.digest(token),
        placed_at=now, until=now + timedelta(seconds=provider.start_s_max), resumed_step=job.saved_step,
        key_until=now + leases.KEY_LIFE,
    )  # fmt: skip
    reason = f"attempt {attempt} on {provider.name} from step {job.saved_step}"
    transition = policy.apply(job, Fact.PLACED, now=now, reason=reason, attempt=attempt, lease=lease)
    if transition is None or await deps.jobs.replace(transition.job, stored.version) is None:
        return False
    listing = await provider.offers(Wanted(kind=job.spec.kind))
    if not isinstance(listing, Listing) or not listing.offers:
        return False
    order = Order(
        label=lease.label, kind=job.spec.kind, offer=listing.offers[0],
        environment={"GOBLIN_URL": deps.url, "GOBLIN_ATTEMPT_TOKEN": token},
    )  # fmt: skip
    try:
        await deps.keys.open(lease.token_sha256, name=f"job:{job.job_id}", until=now + leases.KEY_LIFE)
        instance_id = await provider.rent(order)
    except (ProviderUnavailable, Refused) as error:
        await _settle(job.job_id, lease, Fact.NOT_RENTED, str(error), deps)
        return False
    except Transient as error:
        log.warning("job %s: nobody knows whether %s was rented: %s", job.job_id, lease.label, error)
        return False
    rented = replace(lease, instance_id=instance_id)
    await _settle(job.job_id, rented, Fact.RENTED, f"instance {instance_id} of {provider.name}", deps)
    return True


async def _settle(job_id: str, lease: Lease, fact: Fact, reason: str, deps: JobDeps) -> None:
    """Write how renting went, if the lease is still the job's; the instance may have spoken already."""

    def decide(job: Job) -> Transition | None:
        if job.lease is None or job.lease.label != lease.label:
            return None
        after = replace(job.lease, instance_id=lease.instance_id)
        return policy.apply(job, fact, now=deps.clock.now(), reason=reason, lease=after)

    transition = await change(deps, job_id, decide)
    if transition is not None:
        await act(transition, deps)


async def _sweep(inventories: Mapping[str, Inventory], deps: JobDeps) -> tuple[int, list[str]]:
    """End every instance that has no live lease, whoever lost sight of it and how."""
    released, errors = 0, []
    for name, inventory in inventories.items():
        for instance in sorted(inventory.instances if isinstance(inventory, Known) else (), key=lambda i: i.label):
            try:
                # Read now, after the inventory: a lease is written before its instance exists.
                stored = await deps.jobs.get(job_of_label(instance.label))
                if policy.wants(stored.job if stored else None, instance.label):
                    continue
                log.info("%s: instance %s (%s) has no live lease", name, instance.instance_id, instance.label)
                await deps.compute[name].release(instance.label)
                released += 1
            except Transient as error:
                errors.append(f"{name}: {instance.label} is not released: {error}")
    return released, errors
