"""Cloud Run services in line with the freezes: scaled to zero by a freeze, and scaled back after its thaw.

Each run starts from what is frozen now, not from an event. So it may run twice, late, or in two processes at once:
after an event, after a thaw, and each hour.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from goblin.billing.domain.ledger import TOTAL, Freeze
from goblin.billing.policy import scale_to_zero as policy
from goblin.billing.ports import Ledger, ServiceScaler
from goblin.core.endpoints import Endpoint
from goblin.core.errors import Conflict, GoblinError, ProviderUnavailable
from goblin.core.ports import Clock

log = logging.getLogger(__name__)

ROUNDS_MAX = 3
"""Runs in a row when the freezes changed meanwhile, so that the last process to act has seen the latest freezes."""
TRIES_MAX = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class ScaleToZeroDeps:
    ledger: Ledger
    scaler: ServiceScaler
    services: Mapping[str, Sequence[Endpoint]]
    """Endpoints that a service stands behind, by the service's full name."""
    clock: Clock


async def bring_in_line(deps: ScaleToZeroDeps) -> list[str]:
    """Scale services to zero that a freeze covers, and scale back those whose freeze was lifted.

    Returns:
        A note for each service that was changed.

    Raises:
        GoblinError: A service could not be read or written; the others are in line.
        StoreUnavailable: The freezes could not be read.
    """
    done: list[str] = []
    failed: GoblinError | None = None
    freezes: Sequence[Freeze] | None = None
    for _ in range(ROUNDS_MAX if deps.services else 0):
        if (found := await deps.ledger.freezes()) == freezes:
            break
        freezes, failed = found, None
        for name, endpoints in deps.services.items():
            try:
                done += await _bring(name, policy.why_off(endpoints, freezes), deps)
            except GoblinError as error:
                log.error("Cloud Run service %s is not in line with the budgets: %s", name, error.message)
                failed = error
    if failed is not None:
        raise failed
    return done


async def _bring(name: str, freeze: Freeze | None, deps: ScaleToZeroDeps) -> list[str]:
    for _ in range(TRIES_MAX):
        service = await deps.scaler.read(name)
        wanted = policy.changed(service, freeze)
        if wanted is None:
            return []
        account = freeze.account if freeze is not None else TOTAL
        entry = policy.record_of(service, wanted, account, now=deps.clock.now())
        # Recorded before the change: after a crash the ledger holds the intent, and the next run makes the change.
        await deps.ledger.record(entry)
        try:
            await deps.scaler.write(wanted)
        except Conflict:
            continue
        log.warning("%s", entry.note)
        return [entry.note]
    raise ProviderUnavailable(f"Cloud Run service {name} keeps changing during the update. Try again later.")
