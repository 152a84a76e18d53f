"""Every provider's bill, read over its own wire: the same charges come out of each, to the millionth."""

from __future__ import annotations

import importlib
import re
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from goblin.billing.domain.ledger import Bill, Charge
from goblin.billing.ports import BillSource
from goblin.core.errors import ProviderUnavailable
from goblin.providers.common import bills
from goblin.providers.flyio import billing as flyio
from tests.fakes.bills import Charges

DAY = "2026-11-25"
AT = datetime(2026, 11, 25, 23, 59, 59, tzinfo=UTC)
NAMES = ["openai", "anthropic", "runpod", "vastai"]


def connect(
    name: str, transport: httpx.AsyncBaseTransport, key: str = "admin-key", *, namespace: str = ""
) -> BillSource:
    module: Any = importlib.import_module(f"goblin.providers.{name}.billing")
    more = {"namespace": namespace} if name == "vastai" else {}
    source: BillSource = module.connect(key, httpx.AsyncClient(transport=transport), url="http://bill", **more)
    return source


@pytest.mark.parametrize("name", NAMES)
async def test_a_day_is_the_sum_of_its_charges_and_of_no_other_day(name: str) -> None:
    charges = Charges()
    for micros in (1, 20_000_001, 333_333, 7, 1_000_000):
        charges.charge(name, AT, micros)
    charges.charge(name, AT.replace(day=26, hour=0, minute=0, second=0), 5_000_000)
    source = connect(name, charges.transport)
    assert source.provider == name
    assert (await source.bill(DAY)).usd_micros == 21_333_342
    assert (await source.bill("2026-11-24")).usd_micros == 0


@pytest.mark.parametrize("name", NAMES)
async def test_a_bill_that_cannot_be_read_is_never_zero(name: str) -> None:
    charges = Charges(down={name})
    with pytest.raises(ProviderUnavailable):
        await connect(name, charges.transport).bill(DAY)
    with pytest.raises(ProviderUnavailable) as refused:
        await connect(name, Charges().transport, key="secret").bill(DAY)
    assert "secret" not in refused.value.message
    for text in ("", "<html>", "[]", "{}", '{"success": false}', '{"data": [{}]}', '{"records": [{"startTime": 5}]}'):
        strange = httpx.MockTransport(lambda _, text=text: httpx.Response(200, text=text))
        with pytest.raises(ProviderUnavailable):
            await connect(name, strange).bill(DAY)


HOSTILE = (
    b"\xff", b"[" * 5000, b'{"data": ' + b"[" * 2000 + b"]" * 2000 + b"}", b"NaN", b"9" * 9000, b'{"records": [[]]}',
    b'{"data": [{"results": [{"amount": {"currency": "usd", "value": []}}]}]}', b'[{"events": [{"timestamp": "x"}]}]',
    b'[{"events": [], "created_at": "0001-01-01T00:00:00+23:59", "state": "started"}]', b'"\\ud800"',
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("body", HOSTILE, ids=range(len(HOSTILE)))
async def test_whatever_a_bill_holds_it_is_unknown_and_nothing_else_is_raised(name: str, body: bytes) -> None:
    hostile = httpx.MockTransport(lambda _: httpx.Response(200, content=body))
    with pytest.raises(ProviderUnavailable):
        await connect(name, hostile).bill(DAY)


AMOUNT = re.compile(r'"?7\.?6\.?5\.?4\.?3\.?2\.?1[0-9]*(e[-+]?[0-9]+)?"?')
"""However a provider writes 7.654321 dollars."""


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "amount", ["1e999999", "-1e999999", "1e30", "-1", "NaN", "Infinity", "[]", "null", "1e-999999"]
)
async def test_an_amount_that_cannot_be_is_never_booked(name: str, amount: str) -> None:
    charges = Charges()
    charges.charge(name, AT, 7_654_321)
    replaced = 0

    async def answer(request: httpx.Request) -> httpx.Response:
        nonlocal replaced
        response = await charges.transport.handle_async_request(request)
        text, count = AMOUNT.subn(amount, (await response.aread()).decode())
        replaced += count
        return httpx.Response(response.status_code, text=text)

    try:
        bill = await connect(name, httpx.MockTransport(answer)).bill(DAY)
    except ProviderUnavailable:
        assert replaced
        return
    assert amount == "1e-999999" or not replaced, bill
    assert replaced or name == "flyio", "its bill has hours, not amounts"


async def test_flys_machines_cost_while_they_are_started() -> None:
    def ms(hour: int) -> int:
        return int(datetime(2026, 11, 25, hour, tzinfo=UTC).timestamp() * 1000)

    rows = [
        {"id": "always", "state": "started", "created_at": "2026-11-01T00:00:00Z", "events": []},
        {
            "id": "some", "state": "stopped", "created_at": "2026-11-01T00:00:00Z",
            "events": [
                {"type": "exit", "timestamp": ms(9)}, {"type": "start", "timestamp": ms(3)},
                {"type": "launch", "timestamp": ms(2)}, {"type": "stop", "timestamp": ms(0)},
            ],
        },
    ]  # fmt: skip
    transport = httpx.MockTransport(lambda _: httpx.Response(200, json=rows))
    rate = flyio.Rate(app="chat", started_usd_per_month=Decimal(30))
    source = flyio.connect(
        "t", httpx.AsyncClient(transport=transport), rate=rate, now=lambda: datetime(2026, 11, 25, 12, tzinfo=UTC)
    )
    # 12 hours and 6 hours of a dollar a day, and two disks for half a day.
    assert await source.bill(DAY) == Bill(usd_micros=750_000 + 5_000)


INSTANCES = {
    "vastai": [
        Charge(instance_id="1", label="goblin-a-a1", usd_micros=333_333),
        Charge(instance_id="2", label="goblin-b-a1", usd_micros=1),
    ],
    "runpod": [Charge(instance_id="p0", usd_micros=500_000), Charge(instance_id="p1", usd_micros=7)],
}


@pytest.mark.parametrize("name", INSTANCES)
async def test_what_instances_cost_is_told_for_each(name: str) -> None:
    charges = Charges()
    charges.charge(name, AT, 1_000)
    for one in INSTANCES[name]:
        label = f"{one.label}@project" if one.label else ""
        charges.instance(name, AT, one.usd_micros, instance_id=one.instance_id, label=label)
    bill = await connect(name, charges.transport, namespace="project").bill(DAY)
    assert bill.charges == tuple(INSTANCES[name])
    assert bill.usd_micros == 1_000 + sum(one.usd_micros for one in INSTANCES[name])


async def test_attempts_of_another_deployment_on_the_account_are_not_on_our_bill() -> None:
    charges = Charges()
    charges.instance("vastai", AT, 40, instance_id="1", label="goblin-a-a1@project")
    charges.instance("vastai", AT, 500, instance_id="2", label="goblin-a-a1@another")
    charges.instance("vastai", AT, 7, instance_id="3", label="somebody's")
    bill = await connect("vastai", charges.transport, namespace="project").bill(DAY)
    ours = Charge(instance_id="1", label="goblin-a-a1", usd_micros=40)
    assert bill == Bill(usd_micros=47, charges=(ours,))


@given(st.lists(st.decimals(0, 100, places=9), max_size=8), st.decimals(0, 10, places=9))
def test_the_parts_of_a_bill_are_whole_and_add_up(parts: list[Decimal], more: Decimal) -> None:
    rows = [bills.BillRow(instance_id=str(n), dollars=part) for n, part in enumerate(parts)]
    bill = bills.made(sum(parts, more), rows)
    assert bill.charges is not None
    for part, charge in zip(parts, bill.charges, strict=True):
        assert abs(charge.usd_micros - part * 1_000_000) < 1
    assert abs(bill.usd_micros - sum(charge.usd_micros for charge in bill.charges) - more * 1_000_000) < 1
    assert bill.usd_micros >= sum(charge.usd_micros for charge in bill.charges)


def test_a_bill_is_not_negative() -> None:
    with pytest.raises(ValueError, match="negative"):
        bills.made(Decimal(1), [bills.BillRow(instance_id="1", dollars=Decimal("-0.1"))])
    assert bills.made(Decimal(1), [bills.BillRow(instance_id="1", dollars=Decimal(2))]).usd_micros == 2_000_000


async def test_who_asks_too_soon_waits_and_asks_again_but_not_for_ever() -> None:
    answers, waited = [429, 429, 200], []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    def answer(_: httpx.Request) -> httpx.Response:
        return httpx.Response(answers.pop(0) if answers else 429, text="{}")

    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as client:
        api = bills.BillingApi("vastai", "http://bill", client, sleep)
        assert await api.get("/", headers={}, params={}) == {}
        assert waited == list(bills.WAITS_S[:2])
        with pytest.raises(ProviderUnavailable, match="429"):
            await api.get("/", headers={}, params={})
    assert len(waited) == 2 + len(bills.WAITS_S)
