"""Cloud Run services in line with the freezes: turned off while one wants that, and as they were when none does.

Nothing follows from an event but from what is frozen now, so that it may be done twice, late, or by two at once:
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
"""How often it is done again because the freezes changed meanwhile; whoever acts last has seen the last of them."""
TRIES_MAX = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class ScaleToZeroDeps:
    ledger: Ledger
    scaler: ServiceScaler
    services: Mapping[str, Sequence[Endpoint]]
    """By their full names, the endpoints that they stand behind."""
    clock: Clock


async def bring_in_line(deps: ScaleToZeroDeps) -> list[str]:
    """Turn off what a freeze turns off, and on what was off by none that is left; what was done.

    Raises:
        GoblinError: A service could not be read or written; the others are in line.
        StoreUnavailable: Nobody knows what is frozen.
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
                log.error("Cloud Run's %s is not in line with the budgets: %s", name, error.message)
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
        # Written before it is done: a crash leaves what was meant, and whoever comes next does it.
        await deps.ledger.record(entry)
        try:
            await deps.scaler.write(wanted)
        except Conflict:
            continue
        log.warning("%s", entry.note)
        return [entry.note]
    raise ProviderUnavailable(f"{name} is being changed by others all the time.")
