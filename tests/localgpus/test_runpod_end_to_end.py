"""RunPod's market with real processes and real money behind it: what we rent, run, end and are billed for."""

from __future__ import annotations

import asyncio
import json
import ssl
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from starlette.applications import Starlette

from goblin.core.labels import attempt_label
from goblin.jobs.domain.instances import InstanceState, KnownInventory, RentalOrder
from goblin.jobs.domain.market import InstanceRequirements, Listing
from goblin.jobs.ports import ComputeProvider
from goblin.providers.common.kept_connections import KeptConnections, PlainClient
from goblin.providers.runpod import billing as bills
from goblin.providers.runpod import compute
from localgpus.machines import Processes
from localgpus.runpod import routes
from localgpus.runpod.market import Market, Terms
from tests.fakes.runpod_pods import KEYS, Stage, Switch
from tests.fakes.serving import serve

LABEL = attempt_label("j", 1)
DEADLINE_S = 20.0

# Says what it was told; ends by itself when its token says so, else when it is asked to, and says that it was.
PROGRAM = """
import json, os, signal, sys, threading
def asked(*_):
    open("asked", "w").close()
    sys.exit(0)
signal.signal(signal.SIGTERM, asked)
with open("draft", "w") as file:
    json.dump(dict(os.environ), file)
os.replace("draft", "told")
threading.Thread(target=lambda: (sys.stdin.buffer.read(), os._exit(3)), daemon=True).start()
if os.environ["GOBLIN_ATTEMPT_TOKEN"] == "short":
    sys.exit(0)
while True:
    signal.pause()
"""


@pytest.fixture
async def client() -> AsyncIterator[PlainClient]:
    async with PlainClient(KeptConnections(tls=ssl.create_default_context(), most=8, kept=4)) as client:
        yield client


async def order(provider: ComputeProvider, label: str = LABEL, token: str = "long") -> RentalOrder:
    listing = await provider.offers(InstanceRequirements(kind="training", gpus=("RTX_4090",), gpu_count=1))
    assert isinstance(listing, Listing), listing
    environment = {"GOBLIN_URL": "http://g", "GOBLIN_ATTEMPT_TOKEN": token}
    return RentalOrder(label=label, kind="training", environment=environment, offer=listing.offers[0], image="agent:1")


async def states(provider: ComputeProvider) -> dict[str, InstanceState]:
    inventory = await provider.inventory()
    assert isinstance(inventory, KnownInventory), inventory
    return {instance.label: instance.state for instance in inventory.instances}


async def until(true: Callable[[], Awaitable[bool]]) -> None:
    """Wait for what another process does; there is nothing to wait on but its effects."""
    deadline = time.monotonic() + DEADLINE_S
    while not await true():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


async def test_a_pod_is_a_process_from_its_start_to_its_end(tmp_path: Path, client: PlainClient) -> None:
    machines = Processes([sys.executable, "-c", PROGRAM], tmp_path)
    market = Market(machines, terms=Terms(provision_s=0, start_s=0))
    with serve(Starlette(routes=routes(market, keys=KEYS, limits=False))) as base:
        provider = compute.connect(api_key="rpa_all", namespace="project", client=client, url=f"{base}/v2")
        pod_id = await provider.rent(await order(provider))
        disk = tmp_path / f"runpod-{pod_id}" / "disk"

        async def told() -> bool:
            return await states(provider) == {LABEL: InstanceState.RUNNING} and (disk / "told").exists()

        await until(told)
        environment = json.loads((disk / "told").read_text())
        assert environment["GOBLIN_ATTEMPT_TOKEN"] == "long"
        assert environment["RUNPOD_POD_ID"] == pod_id
        assert "RUNPOD_API_KEY" not in environment

        short = attempt_label("j", 2)
        await provider.rent(await order(provider, short, token="short"))

        async def ended() -> bool:
            return (await states(provider))[short] is InstanceState.ENDED

        await until(ended)
        await provider.release(short)
        assert set(await states(provider)) == {LABEL}

        await provider.release(LABEL)
        assert await states(provider) == {}

        async def wiped() -> bool:
            market.advance()
            return not disk.exists()

        await until(wiped)
        assert not machines.running(f"runpod-{pod_id}")
    machines.close()


async def test_the_bill_names_the_instances_that_we_rented_to_the_cent(client: PlainClient) -> None:
    switch = Switch()
    stage = switch.show(Stage())
    with serve(switch) as base:
        provider = compute.connect(
            api_key="rpa_all", namespace="project", client=client, url=f"{base}/v2", monotonic=stage.clock
        )
        ids = {}
        for attempt, hours in ((1, 2), (2, 3)):
            label = attempt_label("j", attempt)
            ids[label] = await provider.rent(await order(provider, label))
            stage.pass_time(hours * 3600)
            await provider.release(label)
        stage.pass_time(24 * 3600)
        source = bills.connect("rpa_reads", client, url=base)
        bill = await source.bill("2026-11-25")
        # Community's RTX 4090 at $0.34 an hour, and 20 GB at $0.10 a month of 720 hours.
        hour = 340_000 + 20 * 100_000 / 720
        assert bill.usd_micros == pytest.approx(5 * hour, abs=2)
        assert bill.usd_micros == pytest.approx(100_000_000 - stage.market.balance_usd_micros(), abs=2)
        assert {charge.instance_id: charge.usd_micros for charge in bill.charges or ()} == {
            ids[attempt_label("j", 1)]: pytest.approx(2 * hour, abs=2),
            ids[attempt_label("j", 2)]: pytest.approx(3 * hour, abs=2),
        }
        assert sum(charge.usd_micros for charge in bill.charges or ()) == bill.usd_micros
        assert (await source.bill("2026-11-26")).usd_micros == 0
