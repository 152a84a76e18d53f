"""A process that spends from a real (local) Firestore until it is done or killed.

`python -m tests.simulation.spender_process PROJECT CHARGES_FILE SEED REQUESTS BASE STARTED`

Each request is billed when it is sent: one line in CHARGES_FILE, in one write. A provider would also charge a request
whose process is killed before it settles it.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import time
from datetime import datetime, timedelta

from goblin.billing.budget_client import BudgetClient, Reservation, request_settlement
from goblin.billing.domain.accounts import Limit, Period
from goblin.billing.policy.allocation import ThresholdEvent
from goblin.core.errors import StoreUnavailable
from goblin.gcp.firestore.ledger import FirestoreLedger

LIMITS = {
    "total": (Limit(period=Period.MONTH, limit_usd_micros=60_000),),
    "openai": (Limit(period=Period.DAY, limit_usd_micros=50_000),),
    "key/ann": (Limit(period=Period.LIFETIME, limit_usd_micros=30_000),),
}
PATHS = [("openai/ann", ("key/ann",)), ("openai/bob", ("key/bob",)), ("groq/ann", ("key/ann",))]
WORST = 400
PARALLEL = 6
PATIENCE = 20
"""How often a request asks again when the store is too busy; Google's emulator is, with eight at once."""


class ShiftedClock:
    """A clock on another day that runs at normal speed."""

    def __init__(self, base: datetime, started: float) -> None:
        self._base, self._started = base, started

    def now(self) -> datetime:
        return self._base + timedelta(seconds=time.time() - self._started)

    def monotonic(self) -> float:
        return time.monotonic()


async def spend(project: str, charges: str, seed: int, requests: int, clock: ShiftedClock) -> None:
    from google.cloud.firestore import AsyncClient

    ledger = FirestoreLedger(AsyncClient(project=project), declared=LIMITS)

    async def nobody(threshold_event: ThresholdEvent) -> None:
        return

    budget_client = BudgetClient(ledger, ledger, clock, announce=nobody, maintain_every_s=0.2)
    file = os.open(charges, os.O_WRONLY | os.O_APPEND)
    rng, places = random.Random(seed), asyncio.Semaphore(PARALLEL)

    async def request(number: int) -> None:
        async with places:
            account, also = rng.choice(PATHS)
            worst = rng.randint(1, WORST)
            for _ in range(PATIENCE):
                try:
                    found = await budget_client.reserve(account, also, f"{os.getpid()}-{seed}-{number}", worst)
                    break
                except StoreUnavailable:
                    await asyncio.sleep(0.2 + 0.4 * rng.random())
            else:
                return
            if not isinstance(found, Reservation):
                return
            cost = rng.randint(0, worst)
            os.write(file, f"{account} {cost} {os.getpid()}\n".encode())
            await asyncio.sleep(rng.random() * 0.02)
            await budget_client.settle(found, request_settlement(found, cost, model="model/m", note=""))

    print("ready", flush=True)
    await asyncio.gather(*(request(n) for n in range(requests)))
    await budget_client.close()
    print("done", flush=True)


if __name__ == "__main__":
    project, charges, seed, requests, base, started = sys.argv[1:]
    clock = ShiftedClock(datetime.fromisoformat(base), float(started))
    asyncio.run(spend(project, charges, int(seed), int(requests), clock))
