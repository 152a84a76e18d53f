"""Which Cloud Run services a freeze turns off, and what they are given back when it is lifted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from goblin.billing.domain.ledger import TOTAL, BudgetAction, EntryKind, Freeze, LedgerEntry
from goblin.billing.domain.run_service import ZERO, RunService, ServiceScaling
from goblin.core.endpoints import Endpoint


def why_off(endpoints: Sequence[Endpoint], freezes: Sequence[Freeze]) -> Freeze | None:
    """The freeze that wants no instance of a service; None: it may run.

    Args:
        endpoints: Those that the service stands behind; a freeze of any of them turns it off.
        freezes: All there are now, the oldest first.
    """
    accounts = {TOTAL, *(e.name for e in endpoints), *(e.provider for e in endpoints)}
    return next((f for f in freezes if f.action is BudgetAction.SCALE_TO_ZERO and f.account in accounts), None)


def changed(service: RunService, freeze: Freeze | None) -> RunService | None:
    """The service as it must become; None: it is as it must be.

    What it had is kept when it is turned off, and given back once. Turned off by somebody else it is not ours to
    turn on; turned on while it was frozen, by a deployment say, it is turned off again; and what a person set in the
    meantime is not set back.
    """
    if freeze is not None:
        if service.scaling.is_zero:
            return None
        return replace(service, scaling=ZERO, kept=service.scaling, frozen_by=freeze.entry_id)
    if service.kept is None:
        return None
    scaling = service.kept if service.scaling.is_zero else service.scaling
    return replace(service, scaling=scaling, kept=None, frozen_by="")


def record_of(before: RunService, after: RunService, account: str, *, now: datetime) -> LedgerEntry:
    """The fact that a service is turned off or on again; of one freeze each happens once."""
    off = after.kept is not None
    freeze, name = after.frozen_by if off else before.frozen_by, after.name.replace("/", "~")
    return LedgerEntry(
        entry_id=f"scale:{freeze}:{name}" + ("" if off else ":back"),
        kind=EntryKind.SCALE,
        account=account,
        amount_usd_micros=0,
        at=now,
        note=_said(before.scaling, after),
    )


def _said(before: ServiceScaling, after: RunService) -> str:
    if after.kept is not None:
        return f"Cloud Run's {after.short} keeps no instance; it had {before}"
    return f"Cloud Run's {after.short} may run again, with {after.scaling}"
