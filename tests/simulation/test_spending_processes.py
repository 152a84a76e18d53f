"""Eight processes on one real ledger, some killed at random: no budget is overspent, and the ledger equals the bill."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from goblin.billing import settlement
from goblin.billing.domain.accounts import windows_of
from goblin.cli import paths
from goblin.gcp.firestore.ledger import FirestoreLedger
from localcloud import google
from tests.clouds import RunningCloud
from tests.fakes.bills import Charges, FakeBill
from tests.fakes.registry import FixedClock
from tests.simulation.spender_process import LIMITS

BASE = datetime(2026, 11, 25, 12, tzinfo=UTC)
PROCESSES, KILLED, REQUESTS = 8, 4, 60
START_S_MAX, LIVE_S_MAX = 60.0, 60.0


@pytest.fixture(params=["localcloud", "google"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A Firestore to connect to."""
    with ExitStack() as stack:
        if request.param == "localcloud":
            declared = paths.declaration()
            cloud = stack.enter_context(RunningCloud(tmp_path / "cloud", services=("firestore",), declaration=declared))
            yield str(cloud.addresses.firestore)
            return
        found = google.find()
        if found.reason:
            pytest.skip(found.reason)
        port = google.free_port()
        stack.enter_context(google.running(google.firestore_command(found, port), port))
        yield f"{google.HOST}:{port}"


def ledger_at(address: str, project: str) -> FirestoreLedger:
    from google.cloud.firestore import AsyncClient

    with mock.patch.dict(os.environ, {"FIRESTORE_EMULATOR_HOST": address}):
        client = AsyncClient(project=project)
        _ = client._firestore_api
    return FirestoreLedger(client, declared=LIMITS)


async def check(ledger: FirestoreLedger) -> int:
    """No budget is over its limit; how many were looked at."""
    looked = 0
    for account in await ledger.accounts():
        for limit in account.limits:
            if (usage := account.usages.get(limit.period)) is not None:
                assert usage.allocated_usd_micros >= 0
                assert usage.spent_usd_micros + usage.allocated_usd_micros <= limit.limit_usd_micros, account
                looked += 1
    return looked


@pytest.mark.timeout(240)
@pytest.mark.xdist_group("processes")
async def test_killed_processes_overspend_nothing_and_the_bill_settles_it(address: str, tmp_path: Path) -> None:
    seed = int(os.environ.get("GOBLIN_SIMULATION_SEED", str(random.SystemRandom().randrange(10**6))))
    rng = random.Random(seed)
    print("seed", seed)
    project, charges_file = f"spend-{seed}", tmp_path / "charges"
    charges_file.touch()
    ledger, started = ledger_at(address, project), time.time()

    def start(number: int) -> subprocess.Popen[str]:
        words = [project, str(charges_file), str(seed + number), str(REQUESTS), BASE.isoformat(), str(started)]
        return subprocess.Popen(
            [sys.executable, "-m", "tests.simulation.spender_process", *words],
            env={**os.environ, "FIRESTORE_EMULATOR_HOST": address}, cwd=Path(__file__).parents[2],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    processes = [start(number) for number in range(PROCESSES)]
    try:
        for process in processes:
            assert process.stdout is not None
            assert await asyncio.wait_for(asyncio.to_thread(process.stdout.readline), START_S_MAX) == "ready\n"
        killed, looked = 0, 0
        # Killed in the middle of it: after so many charges of their own.
        marks = {victim: rng.randrange(1, 15) for victim in rng.sample(processes, KILLED)}
        until = time.monotonic() + LIVE_S_MAX
        while any(process.poll() is None for process in processes) and time.monotonic() < until:
            looked += await check(ledger)
            charged = Counter(int(line.split()[2]) for line in charges_file.read_text().splitlines())
            for victim in [one for one, mark in marks.items() if charged[one.pid] >= mark]:
                del marks[victim]
                killed += victim.poll() is None
                victim.kill()
        survivors = [process for process in processes if process.wait(10) == 0]
    finally:
        for process in processes:
            process.kill()
            process.wait()
            if process.stdout:
                process.stdout.close()
    assert killed, f"seed {seed}: nobody was killed in time"
    assert looked
    assert len(survivors) == PROCESSES - killed
    await check(ledger)

    charges = Charges()
    for line in charges_file.read_text().splitlines():
        account, cost, _ = line.split()
        charges.charge(account.split("/")[0], BASE, int(cost))
    openai, groq = charges.total("openai", "2026-11-25"), charges.total("groq", "2026-11-25")
    assert 0 < openai + groq <= LIMITS["total"][0].limit_usd_micros
    clock = FixedClock(BASE + timedelta(days=1))

    async def nobody(threshold_event: Any) -> None:
        return

    deps = settlement.SettlementDeps(
        ledger=ledger, allocation_store=ledger, bills=[FakeBill(charges, "openai"), FakeBill(charges, "groq")],
        announce=nobody, prices={}, clock=clock,
    )  # fmt: skip
    report = await settlement.settle(deps)
    assert report.expired, f"seed {seed}"
    assert (await settlement.settle(deps)).corrected == {}
    balances = {b.account: b.spent_usd_micros for b in await ledger.balances("2026-11-25")}
    assert (balances.get("openai", 0), balances.get("groq", 0), balances["total"]) == (openai, groq, openai + groq)
    assert await ledger.allocations() == []
    for account in await ledger.accounts():
        for period, usage in account.usages.items():
            assert usage.allocated_usd_micros == 0
            if account.name in ("total", "openai", "groq") and usage.window == windows_of(BASE)[period]:
                assert usage.spent_usd_micros == balances[account.name]
