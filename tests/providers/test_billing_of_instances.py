"""What rented instances came to, as the markets that a laptop rents from bill it."""

from __future__ import annotations

from datetime import UTC, datetime

import httpx
from starlette.applications import Starlette

from goblin.providers.runpod import billing as runpod
from goblin.providers.vastai import billing as vastai
from tests.fakes import runpod_pods
from tests.localgpus.test_runpod_market import GPU
from tests.localgpus.vast import KEY, START, Town, machine

HOUR = 3600.0


def day_of(at: float) -> str:
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d}"


async def test_vasts_charges_say_which_attempt_they_are_for() -> None:
    town = Town(machine(1), machine(2), machine(3))
    ours = town.running(1, label="goblin-j-a1@project")
    town.running(2, label="goblin-j-a1@another")
    town.running(3, label="a model server")
    town.later(HOUR)
    client = httpx.AsyncClient(transport=httpx.ASGITransport(town.app), base_url="http://vast")
    source = vastai.connect(KEY, client, namespace="project", url="http://vast")
    bill = await source.bill(day_of(START))
    assert bill.charges is not None
    (charge,) = bill.charges
    amounts = {meter.contract_id: meter.amount for meter in town.market.state.meters}
    assert (charge.instance_id, charge.label) == (str(ours.id), "goblin-j-a1")
    assert abs(charge.usd_micros - amounts[ours.id] * 1e6) <= 1
    assert abs(bill.usd_micros - charge.usd_micros - amounts[max(amounts)] * 1e6) <= 1  # The model server is ours too.
    assert (await source.bill(day_of(START - 24 * HOUR))).usd_micros == 0


async def test_runpods_billing_says_what_each_pod_came_to() -> None:
    stage = runpod_pods.Stage(billing_late_s=0.0)
    headers = {"authorization": "Bearer rpa_all"}
    transport = httpx.ASGITransport(Starlette(routes=stage.api.routes()))
    async with httpx.AsyncClient(transport=transport, base_url="http://runpod", headers=headers) as client:
        made = []
        for name in ("goblin-j-a1@project", "goblin-k-a1@project"):
            body = {
                "name": name, "image": "i", "cloud": "COMMUNITY", "gpu": {"id": GPU, "count": 1}, "disk": 20,
                "startSsh": False,
            }  # fmt: skip
            answer = await client.post("/v2/pods", json=body)
            assert answer.status_code == 201, answer.text
            made.append(answer.json())
        stage.pass_time(HOUR)
        source = runpod.connect("rpa_all", client, url="http://runpod")
        bill = await source.bill(day_of(stage.clock.now))
    assert bill.charges is not None
    assert {charge.instance_id for charge in bill.charges} == {pod["id"] for pod in made}
    disk_usd = 20 * 0.10 / 720
    for charge, pod in zip(sorted(bill.charges, key=lambda one: one.instance_id), sorted(made, key=lambda p: p["id"]),
                           strict=True):  # fmt: skip
        assert abs(charge.usd_micros - (pod["cost"] + disk_usd) * 1e6) <= 2
    assert abs(bill.usd_micros - sum(charge.usd_micros for charge in bill.charges)) <= 1
