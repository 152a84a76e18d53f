"""Reserving from a lease beside one transaction per request, over a real (local) Firestore, for 1 to 64 instances."""

import asyncio
import itertools
import logging
import os
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest import mock

from goblin.billing.budget_client import REFUSED_S, BudgetClient, Reservation, request_settlement
from goblin.billing.domain.accounts import Limit, Period
from goblin.billing.policy.allocation import AllocationRequest, ThresholdEvent
from goblin.core.errors import StoreUnavailable
from goblin.gcp.firestore.ledger import FirestoreLedger
from tests.bench._show import text_table
from tests.clouds import CloudProcess, environment

INSTANCES = (1, 4, 16, 64)
SECONDS = 4.0
"""Of each measurement."""
PARALLEL = 4
"""Requests at once on one instance."""
WORST, COST = 100, 60
LAST_CENT = 10_000
AT_ONCE = 200
APART_S = 0.1
"""Between the starts of two instances."""
ANSWER_S = 0.2
"""How long an answer takes: short, for a model."""
AGAIN_S = 1.0
PLENTY = (Limit(period=Period.MONTH, limit_usd_micros=10**12),)
PATH = ("openai/bench", ("key/bench",))


class Clock:
    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic(self) -> float:
        return time.monotonic()


async def _nobody(threshold_event: ThresholdEvent) -> None:
    return


class _Firm:
    """Instances that share one ledger as processes do: each has its own connection and its own leases."""

    def __init__(self, project: str, limits: tuple[Limit, ...]) -> None:
        self.project, self.limits = project, limits
        self.clock = Clock()
        self._clients: list[Any] = []

    def ledger(self) -> FirestoreLedger:
        from google.cloud.firestore import AsyncClient

        self._clients.append(AsyncClient(project=self.project))
        return FirestoreLedger(self._clients[-1], declared={"key/bench": self.limits})

    async def close(self) -> None:
        for client in self._clients:
            await client._firestore_api.transport.close()

    def budget_client(self) -> BudgetClient:
        ledger = self.ledger()
        return BudgetClient(ledger, ledger, self.clock, announce=_nobody, maintain_every_s=1.0)


async def _drive(instances: int, request: Callable[[int], Awaitable[float | None]]) -> dict[str, float]:
    """Instances start one after the other, and each serves so many requests at once, as fast as answers take.

    Counted are the seconds after all have started. A request says how long it waited; None: it was refused, or
    nobody answered.
    """
    waits: list[float] = []
    failed = 0
    clock = time.perf_counter
    began = clock() + instances * APART_S
    until = began + SECONDS

    async def caller(place: int) -> None:
        nonlocal failed
        await asyncio.sleep(place * APART_S)
        while clock() < until:
            started, waited = clock(), await request(place)
            if waited is None:
                failed += 1
                await asyncio.sleep(AGAIN_S)  # As `Retry-After` says.
            elif started >= began:
                waits.append(waited)

    await asyncio.gather(*(caller(n % instances) for n in range(instances * PARALLEL)))
    return {
        "per_s": round(len(waits) / (clock() - began), 1),
        "added_ms_p50": round(statistics.median(waits) * 1000, 3) if waits else float("nan"),
        "failed": failed,
    }


async def _allocations(instances: int, project: str) -> dict[str, float]:
    firm = _Firm(project, PLENTY)
    spenders = [firm.budget_client() for _ in range(instances)]
    numbers = itertools.count()

    async def request(place: int) -> float | None:
        started = time.perf_counter()
        try:
            found = await spenders[place].reserve(*PATH, f"r{next(numbers)}", WORST)
        except StoreUnavailable:
            return None
        waited = time.perf_counter() - started
        if not isinstance(found, Reservation):
            return None
        await asyncio.sleep(ANSWER_S)
        await spenders[place].settle(found, request_settlement(found, COST, model="model/m", note=""))
        return waited

    found = await _drive(instances, request)
    await asyncio.gather(*(budget_client.close() for budget_client in spenders))
    await firm.close()
    return found


async def _transactions(instances: int, project: str) -> dict[str, float]:
    """What peers do at best: each request takes from the budget in a transaction of its own before it is sent."""
    firm = _Firm(project, PLENTY)
    ledgers = [firm.ledger() for _ in range(instances)]
    numbers = itertools.count()

    async def request(place: int) -> float | None:
        name = f"t{next(numbers)}"
        ask = AllocationRequest(
            allocation_id=name,
            account=PATH[0],
            also=PATH[1],
            seq=1,
            used_usd_micros=0,
            need_usd_micros=WORST,
            may_shrink=True,
        )
        started = time.perf_counter()
        try:
            await ledgers[place].exchange(ask, now=firm.clock.now())
        except StoreUnavailable:
            return None
        waited = time.perf_counter() - started
        await asyncio.sleep(ANSWER_S)
        return waited

    found = await _drive(instances, request)
    await firm.close()
    return found


async def _last_cent(instances: int, project: str) -> tuple[int, float]:
    """Two hundred requests at once for the last cent, then one by one until everybody is refused.

    Returns:
        What was spent or reserved beyond the limit, and the share of it that nobody could use in the end.
    """
    limit = (Limit(period=Period.MONTH, limit_usd_micros=LAST_CENT),)
    firm = _Firm(project, limit)
    spenders = [firm.budget_client() for _ in range(instances)]
    numbers = itertools.count()
    really = over = 0

    async def reserve(place: int) -> Reservation | None:
        nonlocal really, over
        for _ in range(20):
            try:
                found = await spenders[place].reserve(*PATH, f"c{next(numbers)}", WORST)
            except StoreUnavailable:
                await asyncio.sleep(0.2)
                continue
            if not isinstance(found, Reservation):
                return None
            really += WORST
            over = max(over, really - LAST_CENT)
            return found
        return None

    async def settle(place: int, found: Reservation) -> None:
        nonlocal really
        really += COST - WORST
        await spenders[place].settle(found, request_settlement(found, COST, model="model/m", note=""))

    async def one(n: int) -> tuple[int, Reservation | None]:
        return n % instances, await reserve(n % instances)

    for place, found in await asyncio.gather(*(one(n) for n in range(AT_ONCE))):
        if found is not None:
            await settle(place, found)
    # A refusal holds for a moment, so a round of refusals counts only if the next one is the same.
    quiet_rounds = 0
    while quiet_rounds < 2:
        await asyncio.sleep(REFUSED_S)
        answers = await asyncio.gather(*(one(n) for n in range(instances)))
        quiet_rounds = 0 if any(found for _, found in answers) else quiet_rounds + 1
        for place, found in answers:
            if found is not None:
                await settle(place, found)
    await asyncio.gather(*(budget_client.close() for budget_client in spenders))
    await firm.close()
    return over, max(0, LAST_CENT - really - WORST) / LAST_CENT


def run(words: list[str]) -> dict[str, Any]:
    """Figures by number of instances; `--quick` measures 1 and 4 for a second."""
    global SECONDS
    counts = INSTANCES
    if "--quick" in words:
        counts, SECONDS = INSTANCES[:2], 1.0
    result: dict[str, Any] = {"lease": {}, "transaction": {}, "stranded": {}}
    over = 0
    logging.getLogger("goblin").setLevel(logging.ERROR)  # Who gave up is counted.
    with (
        tempfile.TemporaryDirectory() as folder,
        CloudProcess(Path(folder)) as cloud,
        mock.patch.dict(os.environ, environment(cloud.addresses)),
    ):
        for count in counts:
            result["lease"][str(count)] = asyncio.run(_allocations(count, f"lease-{count}"))
            result["transaction"][str(count)] = asyncio.run(_transactions(count, f"transaction-{count}"))
            beyond, stranded = asyncio.run(_last_cent(count, f"cent-{count}"))
            over = max(over, beyond)
            result["stranded"][str(count)] = stranded
    result["stranded_share"] = max(result["stranded"].values())
    result["overshoot_micros"] = over
    return result


def table(result: dict[str, Any]) -> str:
    """The figures as text."""
    rows = [
        (
            count,
            allocation["per_s"],
            allocation["added_ms_p50"],
            result["transaction"][count]["per_s"],
            result["transaction"][count]["added_ms_p50"],
            result["transaction"][count]["failed"],
            f"{result['stranded'][count]:.1%}",
        )
        for count, allocation in result["lease"].items()
    ]
    columns = ("instances", "leases/s", "added ms", "transactions/s", "added ms", "gave up", "stranded")
    title = f"Reserving with {PARALLEL} answers of {ANSWER_S:g} s at once on each instance, and the last cent"
    text = text_table(title, columns, rows)
    return f"{text}\nbeyond the limit: {result['overshoot_micros']} millionths of a dollar"
