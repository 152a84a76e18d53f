"""Which Cloud Run services a freeze scales to zero, and which scaling they get back after its thaw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from goblin.billing.domain.ledger import TOTAL, BudgetAction, EntryKind, Freeze, LedgerEntry
from goblin.billing.domain.run_service import ZERO, RunService, ServiceScaling
from goblin.core.endpoints import Endpoint


def why_off(endpoints: Sequence[Endpoint], freezes: Sequence[Freeze]) -> Freeze | None:
    """Find the freeze that scales a service to zero; None: the service may run.

    Args:
        endpoints: Endpoints that the service stands behind. A freeze of any of them scales it to zero.
        freezes: All that are in force now, the oldest first.
    """
    accounts = {TOTAL, *(e.name for e in endpoints), *(e.provider for e in endpoints)}
    return next((f for f in freezes if f.action is BudgetAction.SCALE_TO_ZERO and f.account in accounts), None)


def changed(service: RunService, freeze: Freeze | None) -> RunService | None:
    """Build the service as it should be; None: it is so already.

    Its scaling is kept when it is scaled to zero, and given back once. A service that something else scaled to zero
    stays so. A service that was scaled up while frozen, for example by a deployment, is scaled to zero again. A scaling
    that a person set in the meantime is not set back.
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
    """Build the entry that says that a service is scaled to zero or back. Each happens once for one freeze."""
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
        return f"Cloud Run service {after.short} is scaled to zero; it had {before}"
    return f"Cloud Run service {after.short} may run again, with {after.scaling}"
