"""The hourly settlement: expired allocations, each provider's own bill, threshold events that were not announced, old
prices, and Cloud Run services that are not in line with the freezes."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from goblin.billing import scale_to_zero
from goblin.billing.domain.accounts import Allocation, Period
from goblin.billing.domain.ledger import INSTANCE_PREFIX, TOTAL, EntryKind, LedgerEntry
from goblin.billing.policy import prices
from goblin.billing.policy import settlement as policy
from goblin.billing.policy.allocation import ThresholdEvent
from goblin.billing.policy.settlement import Settlement
from goblin.billing.ports import AllocationStore, BillSource, Ledger
from goblin.core.endpoints import Price
from goblin.core.errors import Conflict, GoblinError
from goblin.core.ports import Clock

log = logging.getLogger(__name__)

ACTIONS_READ = 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class SettlementDeps:
    ledger: Ledger
    allocation_store: AllocationStore
    bills: Sequence[BillSource]
    announce: Callable[[ThresholdEvent], Awaitable[None]]
    prices: Mapping[tuple[str, str], Price]
    clock: Clock
    scaling: scale_to_zero.ScaleToZeroDeps | None = None
    """For the Cloud Run services that a freeze may turn off."""


@dataclass(slots=True)
class SettlementReport:
    """What one run did, for the log and for the caller."""

    expired: list[str] = field(default_factory=list)
    resolved: list[str] = field(default_factory=list)
    corrected: dict[str, int] = field(default_factory=dict)
    """By account and day, in micro-dollars."""
    alarms: list[str] = field(default_factory=list)
    unknown: dict[str, str] = field(default_factory=dict)
    """Providers whose bill could not be read, and why."""
    announced: list[str] = field(default_factory=list)
    stale_prices: list[str] = field(default_factory=list)
    scaled: list[str] = field(default_factory=list)
    """A note for each Cloud Run service that was not in line with the freezes, and is now."""


async def settle(deps: SettlementDeps) -> SettlementReport:
    """Run the hourly settlement. Every part may be repeated, and a provider that does not answer delays no other.

    Raises:
        StoreUnavailable: The ledger does not answer.
    """
    now, report = deps.clock.now(), SettlementReport()
    for allocation in await deps.allocation_store.allocations():
        if not allocation.expired and now >= allocation.expires_at + policy.GRACE:
            step = await deps.allocation_store.expire(allocation.allocation_id, now=now)
            if step.writes:
                report.expired.append(allocation.allocation_id)
    for source in deps.bills:
        try:
            await _settle_provider(source, deps, report, now)
        except Exception as error:
            # Whatever a bill holds, the other providers' are settled.
            report.unknown[source.provider] = _reason(error)
            log.warning(
                "The bill of %s is unknown: %s", source.provider, _reason(error),
                exc_info=None if isinstance(error, GoblinError) else error,
            )  # fmt: skip
    await _believe_the_billless(deps, report, now)
    await _announce(deps, report)
    await _scale(deps, report)
    await _look_at_prices(deps, report, now)
    return report


def _reason(error: Exception) -> str:
    return error.message if isinstance(error, GoblinError) else f"{type(error).__name__}: {error}"


async def _settle_provider(source: BillSource, deps: SettlementDeps, report: SettlementReport, now: datetime) -> None:
    for day in policy.days_to_read(now):
        bill = await source.bill(day)
        allocations = await deps.allocation_store.allocations()
        balances = {balance.account: balance for balance in await deps.ledger.balances(day)}
        parts = policy.split(
            source.provider,
            day,
            bill,
            balances=balances,
            allocations=[allocation for allocation in allocations if allocation.windows[Period.DAY] == day],
            earlier=[
                allocation
                for allocation in allocations
                if allocation.windows[Period.DAY] < day and allocation.allocation_id.startswith(INSTANCE_PREFIX)
            ],
            rented=await deps.ledger.instance_settlements(day),
            final=policy.is_over(day, now, source.final_after),
        )
        settlements = [policy.settle_day(facts) for facts in parts]
        # Additions come before deductions: an amount that moves from one part to another is counted at all times.
        for settlement in sorted(settlements, key=lambda one: -one.adds_usd_micros):
            await _apply(settlement, deps, report, now)


async def _apply(settlement: Settlement, deps: SettlementDeps, report: SettlementReport, now: datetime) -> None:
    for allocation, spent in settlement.found:
        await _resolve(allocation, spent, deps, report, now)
    for entry in settlement.corrections:
        try:
            written = await deps.ledger.record(entry)
        except Conflict as error:
            log.error("%s", error.message)  # Two runs saw different facts; the next one sees the same.
            continue
        if entry.amount_usd_micros:
            report.corrected[f"{entry.account} {entry.at:%Y-%m-%d}"] = entry.amount_usd_micros
        elif written:
            report.alarms.append(entry.note)
            log.error("%s: %s", entry.account, entry.note)


async def _believe_the_billless(deps: SettlementDeps, report: SettlementReport, now: datetime) -> None:
    """Count expired allocations as fully spent where no bill arrived in time."""
    for allocation in await deps.allocation_store.allocations():
        if allocation.expired and policy.is_over(allocation.windows[Period.DAY], now, policy.BELIEVED_AFTER):
            await _resolve(allocation, allocation.lost_usd_micros, deps, report, now)


async def _resolve(
    allocation: Allocation, spent: int, deps: SettlementDeps, report: SettlementReport, now: datetime
) -> None:
    step = await deps.allocation_store.resolve(allocation.allocation_id, spent_usd_micros=spent, now=now)
    if step.writes:
        report.resolved.append(allocation.allocation_id)


async def _look_at_prices(deps: SettlementDeps, report: SettlementReport, now: datetime) -> None:
    """Record an alert, once for each set of old prices, that they are to be read again."""
    report.stale_prices = prices.stale(deps.prices, now)
    if not report.stale_prices:
        return
    note = f"prices older than {prices.STALE_AFTER.days} days, to be read again: {', '.join(report.stale_prices)}"
    said = hashlib.sha256(note.encode()).hexdigest()[:16]
    alert = LedgerEntry(
        entry_id=f"prices:{said}", kind=EntryKind.ALERT, account=TOTAL, amount_usd_micros=0, at=now, note=note[:1000]
    )
    if await deps.ledger.record(alert):
        log.warning("%s", note)


async def _scale(deps: SettlementDeps, report: SettlementReport) -> None:
    if deps.scaling is None:
        return
    try:
        report.scaled = await scale_to_zero.bring_in_line(deps.scaling)
    except GoblinError as error:
        report.unknown["cloudrun"] = error.message


async def _announce(deps: SettlementDeps, report: SettlementReport) -> None:
    acted = frozenset(entry.entry_id for entry in await deps.ledger.actions(limit=ACTIONS_READ))
    for threshold_event in policy.untold(await deps.ledger.accounts(), acted):
        try:
            await deps.announce(threshold_event)
        except GoblinError as error:
            log.warning("The threshold event of %s was not announced: %s", threshold_event.account, error.message)
            continue
        report.announced.append(f"{threshold_event.account} {threshold_event.window} {threshold_event.percent} %")
